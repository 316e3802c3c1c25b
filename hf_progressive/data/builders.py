"""Builders of `datasets` that read one column, the text, whatever else the files hold.

The stock builders take the columns of the first file for those of all, and refuse a file whose others differ. Their
errors do not always name the file.
"""

import dataclasses
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ArrowBasedBuilder, DatasetBuilder, DatasetInfo, Features, Value
from datasets.packaged_modules.json.json import Json, JsonConfig
from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig
from datasets.packaged_modules.text.text import Text
from datasets.utils.sharding import _number_of_shards_in_gen_kwargs, _split_gen_kwargs
from zstandard import ZstdError

from hf_progressive.config import strict_yaml
from hf_progressive.data.json_depth import require_shallow

_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_SCHEMA = pa.schema({"text": pa.string()})
_NOT_COPIED = {"name", "version", "description", "data_dir", "data_files", "features", "columns"}

DAMAGE: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, ZstdError)
"""What the readers of compressed files raise where one is cut or altered, beside an OSError."""

READING_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, *DAMAGE)
"""What reading a file raises."""


class UnreadableFileError(ValueError):
    """A file cannot be read; the message begins with its path."""


class TextColumnError(ValueError):
    """A file has no such column, or it holds no text."""


class _TextAlone(ArrowBasedBuilder):
    """What the builders below share: every table is cut down to the text, and errors name their file."""

    config: Any
    _file = ""

    def _info(self) -> Any:
        return DatasetInfo(features=Features({"text": Value("string")}))

    def _split_generators(self, dl_manager: Any) -> Any:
        splits = super()._split_generators(dl_manager)
        self.info.features = Features({"text": Value("string")})
        return splits

    def _generate_tables(self, **sources: Any) -> Iterator[tuple[Any, pa.Table]]:
        files = _number_of_shards_in_gen_kwargs(sources)
        for number, one in enumerate(_split_gen_kwargs(sources, max_num_jobs=files)):
            self._file = _path_among(one)
            try:
                self._look_at(self._file)
                for key, table in super()._generate_tables(**one):
                    is_key = dataclasses.is_dataclass(key)  # older versions have numbers and texts
                    numbered = dataclasses.replace(key, original_shard_id=number) if is_key else (number, key)
                    yield numbered, table
            except TextColumnError:
                raise
            except READING_ERRORS as error:
                self._explain(error)
                cause = error.__cause__ or error
                reason = " ".join(str(cause).split()) or type(error).__name__
                remedy = "; write it again as UTF-8" if isinstance(cause, UnicodeDecodeError) else ""
                raise UnreadableFileError(f"{self._file}: {reason}{remedy}") from error

    def _look_at(self, file: str) -> None:
        """Raise an error where a file must not be read."""

    def _explain(self, error: Exception) -> None:
        """Raise a better error, if there is one."""

    def _cast_table(self, pa_table: pa.Table, *_: Any, **__: Any) -> pa.Table:
        column = getattr(self.config, "text_column", "text")
        self._require(column, pa_table.column_names)
        values = pa_table[column]
        if not any(is_kind(values.type) for is_kind in _KINDS):
            raise TextColumnError(f"the column {column!r} of {self._file} holds {values.type}, expected text")
        return pa.Table.from_arrays([values.cast(pa.string())], schema=_SCHEMA)

    def _require(self, column: str, columns: list[str]) -> None:
        if column not in columns:
            raise TextColumnError(f"{self._file} has no column {column!r}; {strict_yaml.nearest(column, columns)}")


def _path_among(sources: dict[str, Any]) -> str:
    # The one file of a shard's arguments: a path, or what iterates over paths.
    lists = [value for value in sources.values() if isinstance(value, list) and value]
    paths = [value[0] for value in lists if isinstance(value[0], str)]
    return paths[0] if paths else str(next(iter(lists[0][0]), "")) if lists else ""


@dataclass
class TextOfJsonConfig(JsonConfig):
    """`JsonConfig` with the column to read."""

    text_column: str = "text"


class TextOfJson(_TextAlone, Json):
    """The text of JSON or JSON Lines files."""

    BUILDER_CONFIG_CLASS = TextOfJsonConfig

    def _look_at(self, file: str) -> None:
        require_shallow(file)


@dataclass
class TextOfParquetConfig(ParquetConfig):
    """`ParquetConfig` with the column to read."""

    text_column: str = "text"


class TextOfParquet(_TextAlone, Parquet):
    """The text of Parquet files; other columns are not even fetched."""

    BUILDER_CONFIG_CLASS = TextOfParquetConfig

    def _split_generators(self, dl_manager: Any) -> Any:
        self.config.columns = [self.config.text_column]
        return super()._split_generators(dl_manager)

    def _explain(self, error: Exception) -> None:
        try:
            with open(self._file, "rb") as file:
                columns = pq.read_schema(file).names
        except (ValueError, OSError):
            return
        self._require(self.config.text_column, columns)


class TextOfText(_TextAlone, Text):
    """Whole text files."""


_OWN_BUILDERS: dict[type[DatasetBuilder], type[DatasetBuilder]] = {
    Json: TextOfJson,
    Parquet: TextOfParquet,
    Text: TextOfText,
}


def reading_text_alone(builder: DatasetBuilder, text_column: str) -> DatasetBuilder:
    """Return a builder that reads what a stock one would, but of the text alone, in a column `text`.

    The same builder comes back where its format has no counterpart here.
    """
    own = next((own for stock, own in _OWN_BUILDERS.items() if isinstance(builder, stock)), None)
    if own is None:
        return builder
    known = {field.name for field in dataclasses.fields(own.BUILDER_CONFIG_CLASS)} - _NOT_COPIED
    options = {name: getattr(builder.config, name) for name in known if hasattr(builder.config, name)}
    if "text_column" in known:
        options["text_column"] = text_column
    if own is TextOfText and options.get("encoding") == "utf-8":
        options["encoding"] = "utf-8-sig"  # a byte order mark is no text
    return own(
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=builder.hash,
        base_path=builder.base_path,
        repo_id=builder.repo_id,
        token=builder.token,
        storage_options=builder.storage_options,
        data_files=builder.config.data_files,
        **options,
    )

"use strict";
// Looks for a newer page: over HTTP it fetches it and exchanges the parts that differ, from a disk it loads itself anew.
(() => {
  const main = document.querySelector("main");
  const onDisk = location.protocol === "file:";
  const store = "hf_progressive " + location.pathname;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const delivered = new Map(all("main > *").map((part) => [part.id, part.outerHTML]));
  let seconds = Number(document.body.dataset.refresh);
  let paused = false;
  let trouble = "";

  const look = (root) => ({
    open: all("details[open]", root).map((details) => details.id),
    left: all(".scroll", root).map((region) => [region.id, region.scrollLeft]),
    focus: root.contains(document.activeElement) ? document.activeElement.id : "",
  });
  const restore = ({ open, left, focus }) => {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, x] of left) if (document.getElementById(id)) document.getElementById(id).scrollLeft = x;
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  };

  const button = document.createElement("button");
  button.type = "button";
  button.id = "pause";
  button.addEventListener("click", () => {
    paused = !paused;
    tell();
  });

  const age = (time) => {
    const passed = Math.max(0, Math.round(Date.now() / 1000 - time));
    if (passed < 120) return passed + " s ago";
    return passed < 7200 ? Math.round(passed / 60) + " min ago" : Math.round(passed / 3600) + " h ago";
  };
  const tell = () => {
    const time = document.getElementById("record-time");
    if (time) {
      time.textContent = age(Number(time.dataset.time));
      const overdue = document.getElementById("overdue");
      if (overdue) overdue.hidden = !(Date.now() / 1000 - Number(time.dataset.time) > Number(time.dataset.due));
    }
    const freshness = document.getElementById("freshness");
    if (freshness && seconds && button.parentNode !== freshness) freshness.append(button);
    if (!seconds) button.remove();
    button.textContent = paused ? "Go on refreshing" : "Pause refreshing";
    let note = document.getElementById("trouble");
    if (freshness && !note) {
      note = document.createElement("span");
      note.id = "trouble";
      freshness.append(note);
    }
    if (note) note.textContent = trouble;
  };

  const exchange = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const kept = new Map([...main.children].map((part) => [part.id, part]));
    const seen = look(main);
    const parts = [...fresh.querySelectorAll("main > *")].map((part) => {
      const same = kept.has(part.id) && delivered.get(part.id) === part.outerHTML;
      delivered.set(part.id, part.outerHTML);
      return same ? kept.get(part.id) : document.adoptNode(part);
    });
    const changed = parts.length !== main.children.length || parts.some((part, i) => part !== main.children[i]);
    if (changed) {
      const y = scrollY;
      main.replaceChildren(...parts);
      tell();
      restore(seen);
      scrollTo(scrollX, y);
    }
    document.title = fresh.title;
    seconds = Number(fresh.body.dataset.refresh || 0);
  };

  const refresh = async () => {
    if (onDisk) {
      // Not while someone copies the command, nor where nobody looks.
      if (document.hidden || String(getSelection())) return;
      sessionStorage.setItem(store, JSON.stringify({ ...look(main), x: scrollX, y: scrollY }));
      location.reload();
      return;
    }
    try {
      const answer = await fetch(location.href, { cache: "no-cache" });
      if (!answer.ok) throw new Error(await answer.text());
      exchange(await answer.text());
      trouble = "";
    } catch (error) {
      trouble = " This page cannot be refreshed: " + (error instanceof TypeError ? "nothing answers here." : error.message);
    }
  };

  tell();
  const before = onDisk && sessionStorage.getItem(store);
  if (before) {
    sessionStorage.removeItem(store);
    const seen = JSON.parse(before);
    restore(seen);
    history.scrollRestoration = "manual";
    scrollTo(seen.x, seen.y);
  }
  let waited = 0;
  let busy = false;
  setInterval(async () => {
    tell();
    waited = paused ? 0 : waited + 1;
    if (!seconds || busy || waited < seconds) return;
    busy = true;
    waited = 0;
    await refresh();
    tell();
    busy = false;
  }, 1000);
})();

"""The processes of a launch, the signals that end them, and the devices that they compute on."""

"""Pure protocol pieces: no sockets, no disk, no clock."""

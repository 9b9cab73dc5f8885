"""Storage: the SCSI disk, its VMBus server (VSP) and client (VSC), and the backends that hold the bytes."""

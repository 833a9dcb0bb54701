"""What can go wrong, by who has to act on it. A message says what, where, expected, found and what to do."""


class DsacError(Exception):
    """Root of all errors that a user can cause and cure; commands print it as one line."""


class ConfigError(DsacError):
    """An option or parameter is unknown or out of range."""


class DataError(DsacError):
    """A bag or data folder cannot be read: missing topics, files, poses, or a wrong layout."""


class DecodeError(DsacError):
    """One message or file cannot be turned into an image, a depth map or a camera."""


class MapError(DsacError):
    """A map bundle is missing, damaged, of another version, or does not fit the encoder."""


class Interrupted(DsacError):
    """Somebody asked for an end of the work; the message says how to go on."""

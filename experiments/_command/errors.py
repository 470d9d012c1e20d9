"""The one error that is the user's to mend: its message is all that is shown."""


class ConfigError(Exception):
    """The user's input is wrong; the message says where and what is allowed."""

"""What can go wrong, as one tree.

A message says what was found, where, what was wanted, and what to do.

    BertrayError          a bug, or a failure nobody foresaw            exit code 1
    ├── ClusterError      Ray lost work that it could not bring back
    └── UserError         the user's configuration or data              exit code 2
        ├── ConfigError   a key or a value
        ├── SchemaError   a column that is missing or of another type
        ├── DataError     what stands in the columns
        ├── ModelError    a model folder that cannot be used
        ├── OutputError   a place that must not be written to
        └── StorageError  a path that cannot be reached

Each takes one message, so each survives pickling from a Ray worker to the driver.
"""


class BertrayError(Exception):
    """Root of every error that bertray raises on purpose."""

    exit_code = 1


class ClusterError(BertrayError):
    """Ray lost workers or objects and could not bring them back."""


class UserError(BertrayError):
    """Something the user can mend: the configuration, the data or the model."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a value of the wrong type, or settings that exclude each other."""


class SchemaError(UserError):
    """A column is missing, doubled, or of another type than the setting wants."""


class DataError(UserError):
    """The values of a column cannot be used: nulls among labels, one class only, no rows."""


class ModelError(UserError):
    """A model folder lacks weights, a head or a tokenizer, or holds pickled code."""


class OutputError(UserError):
    """The output folder holds something else, or another model's work."""


class StorageError(UserError):
    """A path does not exist or cannot be reached with the credentials at hand."""

"""Every error that a person may read.

    LookalikeError
    ├── SettingsError             a setting is wrong; found at start
    ├── SetupError                this machine cannot run it: busy port, missing tool, no disk
    ├── RequestError              a caller sent something we cannot read (HTTP 400)
    ├── LabelConfigError          the labeling configuration has no control that we can fill
    ├── MediaError                this file can never be worked on; a retry would not help
    │   └── MediaUnreachable      not now; a later try may work
    ├── EmbedderError             the model cannot be loaded or used
    ├── StoreError                the ledger cannot be read or written now
    ├── QueueError                the queue server does not answer; the ledger remembers the work
    └── LabelStudioError          Label Studio answered something unexpected
        ├── LabelStudioRefused    401 or 403: the token is wrong, or of the wrong kind
        ├── LabelStudioNotFound   404: the task or project is gone
        └── LabelStudioUnreachable  no answer, 5xx, or "database is locked"; a later try may work

A message is one sentence that says what is wrong, with the value, and what to do next.
"""

from __future__ import annotations


class LookalikeError(Exception):
    """Base of all errors that carry a sentence for a person."""

    #: whether the same call may succeed later without anybody changing anything
    temporary = False


class SettingsError(LookalikeError):
    """A setting has a value that we cannot use."""


class SetupError(LookalikeError):
    """This machine cannot run what was asked for."""


class RequestError(LookalikeError):
    """A caller sent something that we cannot read."""


class LabelConfigError(LookalikeError):
    """The labeling configuration has no control that we can fill."""


class MediaError(LookalikeError):
    """A video or picture that can never be worked on."""


class MediaUnreachable(MediaError):
    """A video that cannot be had now."""

    temporary = True


class EmbedderError(LookalikeError):
    """A model that cannot be loaded or used."""


class StoreError(LookalikeError):
    """The ledger cannot be read or written now."""

    temporary = True


class QueueError(LookalikeError):
    """The queue server does not answer."""

    temporary = True


class LabelStudioError(LookalikeError):
    """Label Studio answered something unexpected."""


class LabelStudioRefused(LabelStudioError):
    """Label Studio does not accept our token."""

    temporary = True  # the work waits until somebody has mended the token


class LabelStudioNotFound(LabelStudioError):
    """The task or project does not exist (any more)."""


class LabelStudioUnreachable(LabelStudioError):
    """Label Studio does not answer, or answers 5xx."""

    temporary = True

"""Every error that a person may read.

    LookalikeError
    ├── SettingsError             a setting is wrong; found at start
    ├── SetupError                this machine cannot run it: busy port, missing tool, no disk
    ├── RequestError              a caller sent something we cannot read (HTTP 400)
    ├── NotYet                    what was asked for is being made; ask again (HTTP 202)
    ├── LabelConfigError          the labeling configuration has no control that we can fill
    ├── MediaError                this file can never be worked on; a retry would not help
    │   └── MediaUnreachable      not now; a later try may work
    │       └── MediaHeldUp       nor any other: no room on the disk, or Label Studio is down
    ├── EmbedderError             the model cannot be loaded or used
    ├── StoreError                the ledger cannot be read or written now
    ├── QueueError                the queue server does not answer; the ledger remembers the work
    └── LabelStudioError          Label Studio answered something unexpected
        ├── LabelStudioRefused    401 or 403: the token is wrong, or of the wrong kind
        ├── LabelStudioNotFound   404: the task or project is gone
        └── LabelStudioUnreachable  no answer, 5xx, or "database is locked"; a later try may work
            └── LabelStudioFailed   500, perhaps to this request alone

A message is one sentence that says what is wrong, with the value, and what to do next.
"""

from __future__ import annotations


class LookalikeError(Exception):
    """Base of all errors that carry a sentence for a person."""

    #: whether the same call may succeed later without anybody changing anything
    temporary = False
    #: whether all work waits for the same thing, so that no piece of it is to be set aside for it
    outage = False


class SettingsError(LookalikeError):
    """A setting has a value that we cannot use."""


class SetupError(LookalikeError):
    """This machine cannot run what was asked for."""


class RequestError(LookalikeError):
    """A caller sent something that we cannot read."""


class NotYet(LookalikeError):
    """What was asked for is being made; asking again soon will give it."""

    temporary = True


class LabelConfigError(LookalikeError):
    """The labeling configuration has no control that we can fill."""


class MediaError(LookalikeError):
    """A video or picture that can never be worked on."""


class MediaUnreachable(MediaError):
    """A video that cannot be had now."""

    temporary = True


class MediaHeldUp(MediaUnreachable):
    """No video can be had now, whichever it is."""

    outage = True


class EmbedderError(LookalikeError):
    """A model that cannot be loaded or used."""


class StoreError(LookalikeError):
    """The ledger cannot be read or written now."""

    temporary = True
    outage = True


class QueueError(LookalikeError):
    """The queue server does not answer."""

    temporary = True
    outage = True


class LabelStudioError(LookalikeError):
    """Label Studio answered something unexpected."""


class LabelStudioRefused(LabelStudioError):
    """Label Studio does not accept our token."""

    temporary = True  # for a while, in which somebody may mend the token


class LabelStudioNotFound(LabelStudioError):
    """The task or project does not exist (any more)."""


class LabelStudioUnreachable(LabelStudioError):
    """Label Studio does not answer, or answers 5xx."""

    temporary = True
    outage = True


class LabelStudioFailed(LabelStudioUnreachable):
    """Label Studio answers 500, perhaps to this request alone."""

    outage = False

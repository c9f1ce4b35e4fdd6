"""The one exception that ckptkit raises for bad input, and what it carries."""


class CkptError(Exception):
    """Something could not be read, planned or written.

    Attributes:
        code: kebab-case identifier listed in `ckptkit.core.codes.CODES`; stable, for programs.
        message: what is wrong, one sentence without the location.
        where: file, tensor, entry or rule concerned; None if there is no one place.
        hint: the next step for the user; None if there is none.
    """

    def __init__(self, code: str, message: str, where: object = None, hint: str | None = None) -> None:
        super().__init__(code, message, where, hint)
        self.code = code
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        place = f" — {self.where}" if self.where else ""
        return f"{self.message}{place}"

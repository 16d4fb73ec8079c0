"""Text that comes from files and file names, made fit for a terminal."""


def printable(text: str) -> str:
    r"""`text` with everything that a terminal would act on spelled out: "\x1b" becomes the four characters \x1b, a line break \n.

    So are lone surrogates, which cannot be written at all, and characters that reverse or hide what follows.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

"""Every error and finding code with its meaning in one line; the documentation's table is generated from it."""

CODES: dict[str, str] = {
    "ambiguous-section": "several parts of the checkpoint look like weights; one must be named",
    "changed-on-disk": "a file changed between looking at it and copying from it",
    "exists": "the target exists already",
    "io-error": "the operating system refused a read or a write",
    "name-collision": "two tensors would get the same name",
    "no-space": "the disk has no room for the output",
    "not-a-file": "the path is a device, pipe or socket",
    "not-found": "no such file or folder",
    "outside-folder": "a file names another file outside its own folder",
    "plan-invalid": "a writer planned an impossible file (a defect of ckptkit or of a plugin)",
    "source-length": "a tensor's source gave another number of bytes than its dtype and shape need",
    "target-is-source": "the target is one of the files being read",
    "truncated": "the file ends before the bytes that its header promises",
}

"""Fetch the JavaScript that the report embeds from npm, and keep it with its licence, version and hash.

    python docs/make_vendored.py

A report opens offline, so that what draws its table is in the package: a file as its maker released it, unchanged. To
take another version, change it here and run this again. Needs npm, of Debian's package of that name.
"""

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "wattflow" / "report" / "vendored"
PACKAGE, VERSION, LICENCE = "datatables.net", "3.1.5", "MIT"
FILES = {"package/js/dataTables.min.js": "dataTables.min.js", "package/License.txt": "LICENSE.txt"}


def main() -> None:
    """Write the files and vendored.json."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        archive = Path(folder) / packed.stdout.split()[-1]
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        FOLDER.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            for member, name in FILES.items():
                file = tar.extractfile(member)
                assert file is not None, member
                (FOLDER / name).write_bytes(file.read())
    about = {"package": PACKAGE, "version": VERSION, "licence": LICENCE}
    about |= {"integrity": f"sha512-{digest}", "sha256": {n: of_file(n) for n in FILES.values()}}
    (FOLDER / "vendored.json").write_text(json.dumps(about, indent=1) + "\n")


def of_file(name: str) -> str:
    """Return the sha256 of a file that is kept."""
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

"""Check a user's program by types: exactly the lines that end in `# wrong` are refused."""

import re
import subprocess
import sys
from pathlib import Path

path = sys.argv[1]
wrong = {k for k, line in enumerate(Path(path).read_text().splitlines(), 1) if line.endswith("# wrong")}
command = [sys.executable, "-m", "mypy", "--follow-imports=silent", path]
checked = subprocess.run(command, capture_output=True, text=True, check=False)
found = {int(line) for line in re.findall(r"^[^:\n]+:(\d+): error:", checked.stdout, re.M)}
assert found == wrong, checked.stdout + checked.stderr
print(f"{len(wrong)} wrong calls are refused, and nothing else")

#!/usr/bin/env bash
# Mutation score of the safety code: mutmut changes it in every small way, and the safety tests must notice. About 6 minutes on one core.
#   benchmarks/mutation.sh        -> score, and the mutants that survived
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r firmware_bridge pyproject.toml "$work/"
mkdir -p "$work/tests"
cp -r tests/firmware_bridge tests/__init__.py tests/conftest.py "$work/tests/"
python=$PWD/.venv/bin/python
cd "$work"
"$python" -m venv venv
venv/bin/pip install --quiet mutmut==3.8.1 numpy pytest hypothesis pyserial
cat > setup.cfg <<'END'
[mutmut]
source_paths=firmware_bridge
only_mutate=
    firmware_bridge/motion/safety.py
    firmware_bridge/motion/limits.py
pytest_add_cli_args_test_selection=
    tests/firmware_bridge/test_safety.py
also_copy=
    tests
    pyproject.toml
END
# mutmut runs pytest in its own way, and fewer examples a mutant are enough.
sed -i '/^filterwarnings/,/^]/d; /^addopts/d' pyproject.toml
sed -i 's/deadline=None, suppress/deadline=None, max_examples=25, derandomize=True, suppress/' tests/conftest.py
sed -i 's/max_examples=60, deadline=None/max_examples=25, deadline=None/' tests/firmware_bridge/test_safety.py
venv/bin/mutmut run --max-children 1 > log 2>&1 || true
tr '\r' '\n' < log | grep -E '[0-9]+/[0-9]+' | tail -n 1
venv/bin/mutmut results 2>/dev/null | grep survived | while IFS=: read -r name _; do
  echo "== $name"
  venv/bin/mutmut show "${name// /}" 2>/dev/null | grep '^[-+] ' || true
done

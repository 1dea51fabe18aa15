"""Checks that a folder holds one abi3 wheel with what belongs in it, bound to stable symbols only."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

# C++ names of torch, c10 and ATen are not stable from one release to the next; the C functions of the Stable ABI are.
UNSTABLE = re.compile(r"_Z\w*?(N[KVO]*(2at|3c10|5torch)|T[VIS]N(2at|3c10|5torch))")
# Part of Python's stable ABI since 3.2 at the latest.
PYTHON = {
    "PyByteArray_FromStringAndSize",
    "PyErr_Clear",
    "PyErr_Format",
    "PyErr_Occurred",
    "PyExc_ValueError",
    "PyList_GetItem",
    "PyList_Size",
    "PyList_Type",
    "PyLong_AsLongLong",
    "PyLong_Type",
    "PyModule_Create2",
    "PyTuple_GetItem",
    "PyTuple_Size",
    "PyTuple_Type",
    "PyType_GetFlags",
    "PyUnicode_CompareWithASCIIString",
    "PyUnicode_FromString",
    "Py_BuildValue",
    "_Py_NoneStruct",
}

wheels = list(Path(sys.argv[1]).glob("*.whl"))
assert len(wheels) == 1, f"{len(wheels)} wheels; there must be one"
assert re.fullmatch(r"fgrl-[\d.]+-cp310-abi3-\w+\.whl", wheels[0].name), f"{wheels[0].name} is no abi3 wheel"

with zipfile.ZipFile(wheels[0]) as wheel, TemporaryDirectory() as folder:
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2, f"top-level entries {sorted(tops)}; only fgrl and its metadata belong there"
    assert "fgrl" in tops
    for needed in (
        r"fgrl/py\.typed",
        r"fgrl/kernels/__init__\.py",
        r"fgrl/_C\.abi3\.so",
        r"fgrl/edits/templates/text\.txt",
        r".*dist-info/licenses/LICENSE",
    ):
        assert any(re.fullmatch(needed, name) for name in names), f"{needed} is missing"
    assert not [name for name in names if "test" in name], "tests are in the wheel"
    library = wheel.extract("fgrl/_C.abi3.so", folder)
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout

undefined = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
assert not (bad := sorted(filter(UNSTABLE.match, undefined))), f"unstable torch symbols: {bad}"
python = {name for name in undefined if re.match(r"_?Py", name)}
assert python <= PYTHON, f"unexpected Python symbols: {sorted(python - PYTHON)}"
print(f"{wheels[0].name}: {len(names)} files, {len(undefined)} undefined symbols, all stable")

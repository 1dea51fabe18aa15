from __future__ import annotations

import subprocess
import sys


def test_reading_and_aligning_need_torch_alone():
    program = (
        "import sys\n"
        "from fgrl.data import EditedPair, PlainTokenizer, ResponseAligner, read_pairs\n"
        "(pair,) = read_pairs([{'prompt': '', 'original': 'teh cat', 'edited': 'the cat'}])\n"
        "assert ResponseAligner(PlainTokenizer())([pair])[0].original_edits == [True, False]\n"
        "print(sorted({'transformers', 'tokenizers', 'pyarrow', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

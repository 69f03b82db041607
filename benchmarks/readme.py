"""Write the README's benchmark table from `benchmarks/results/cpu.json`: no figure there is typed by hand.

python benchmarks/readme.py           # rewrite the table
python benchmarks/readme.py --check   # exit 1 where the README says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from eager_vs_engine import table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
BEGIN, END = "<!-- benchmark table, by benchmarks/readme.py -->\n", "<!-- end of benchmark table -->\n"


def rewritten(readme: str, results: str) -> str:
    """The README with its table made from a results file."""
    result = json.loads(results)
    machine = result["machine"]
    caption = (
        f"{machine['cpu']}, {machine['cores']} cores (fp32 GEMM {machine['gemm_fp32_gflops']:.0f} GFLOP/s), torch "
        f"{machine['torch']}, onnxruntime {machine['onnxruntime']}, {machine['date']}; ViT-B/16, fp32, one picture, warm, "
        "random weights.\n"
    )
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table(result["records"], result["ratios"]) + "\n\n" + caption + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = README.read_text(encoding="utf-8")
    new = rewritten(readme, RESULTS.read_text(encoding="utf-8"))
    if args.check:
        return int(new != readme)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

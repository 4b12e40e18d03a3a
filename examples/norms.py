"""Which latents of a finished run belong to one model, by all four conventions of the norm screen.

python examples/norms.py runs/demo
"""

import sys

import crosscoders as cc


def main() -> None:
    """Print the verdict, the four conventions, and the ten latents nearest to the distilled end."""
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo"
    study = cc.open_study(run)
    finding = cc.run_experiment("norms", study, folder=f"{run}/experiments/norms")
    print(finding.verdict, *finding.lines, sep="\n")
    table = study.latents.select(study.latents["frequency"] > 0).sort("nrn_l1")
    print("\nlatent  NRN (L1)  NRN (L2)  fires on")
    for at in range(10):
        row = [float(table[name][at]) for name in ("latent", "nrn_l1", "nrn_l2", "frequency")]
        print(f"{row[0]:6.0f}  {row[1]:8.3f}  {row[2]:8.3f}  {row[3]:8.2%}")


if __name__ == "__main__":
    main()

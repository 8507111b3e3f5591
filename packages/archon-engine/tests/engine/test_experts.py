"""What blocks of experts report of a step."""

import torch

from archon_engine.assembly.experts import StepReports


def test_a_report_that_is_made_again_counts_once_and_micro_batches_add_up():
    reports = StepReports()
    for micro_batch, counts in ((0, [1, 2]), (1, [4, 0]), (0, [1, 2])):  # the last as recomputation makes it
        reports.add(micro_batch, "3", {"counts": torch.tensor(counts)})
    reports.add(0, "5", {"counts": torch.tensor([7, 7])})
    totals = reports.totals_here()
    assert {layer: values["counts"].tolist() for layer, values in totals.items()} == {"3": [5, 2], "5": [7, 7]}

"""``ModelPluginSuite``: the contract of a model package, as tests that its author inherits.

::

    from archon_testing import ModelPluginSuite


    class TestMyModel(ModelPluginSuite):
        model = "mymodel"

The tests import torch themselves, so that collection stays fast.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from archon_core.contracts.spec import load_target
from archon_core.plugins import ModelSpec, registry
from archon_testing.cases import Case, Variant, allowed_dtypes, declared_variants, variant_case
from archon_testing.enumeration import Design, candidate_layouts
from archon_testing.pipelines import runnable_axes
from archon_testing.requested import read_layout, resume_layouts
from archon_testing.requested_model import RequestedModel

if TYPE_CHECKING:
    from archon_testing.model_checks.built import BuiltModel
    from archon_testing.oracle import Oracle


class ModelPluginSuite:
    """Tests of one model of a plugin, for pytest. Subclass it, name the class ``Test...`` and set ``model``.

    Attributes:
        model: name of the model's spec.
        plugin: module of the plugin's entry point; ``None`` to look it up in the installed package.
        config: content of a ``config.json``; ``None`` for the spec's ``tiny_config``.
        hf_class: ``transformers`` class of the language model; ``None`` for the choice of ``AutoModelForCausalLM``.
        tolerance: largest difference from ``transformers`` in logits, values and gradients, relative to the largest
            magnitude of each. Modules of ``transformers`` round to fp32 internally.
        layouts: layouts to verify, such as ``t2`` or ``p2-ZBV``; ``None`` for two ranks along every declared axis that
            the installation supports.
    """

    model: ClassVar[str]
    plugin: ClassVar[str | None] = None
    config: ClassVar[Mapping[str, Any] | None] = None
    hf_class: ClassVar[Any] = None
    tolerance: ClassVar[float] = 1e-5
    layouts: ClassVar[tuple[str, ...] | None] = None
    _layout_oracle: ClassVar[Oracle]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrise tests with the variants and layouts of the model."""
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", declared_variants(self.spec()))
        if "layout" in metafunc.fixturenames:
            metafunc.parametrize("layout", self.layouts or self.declared_layouts())

    @classmethod
    def spec(cls) -> ModelSpec:
        """The spec of ``model``."""
        if not getattr(cls, "model", ""):
            raise TypeError(f'{cls.__name__}: found no `model`; write `model = "..."`, the name that the spec has')
        return registry().get(ModelSpec, cls.model)

    @classmethod
    def entries(cls) -> dict[str, Any]:
        """The configuration under test."""
        return dict(cls.config or load_target(cls.spec().tiny_config, origin=cls.spec().origin)())

    @classmethod
    def declared_layouts(cls) -> tuple[str, ...]:
        """``d2``, and two ranks along each other axis that the model declares and the installed engine runs.

        The engine runs ``p`` with archon-pipeline.
        """
        of_two_ranks = candidate_layouts(runnable_axes(), cls.spec().capabilities, 2)
        # Replicas require nothing of a model beyond d.
        return tuple(text for text in of_two_ranks if text != "d1" and "r" not in text)

    def build(self, variant: Variant) -> BuiltModel:
        """The model in float64, with random weights, none of them zero or one."""
        from archon_testing.model_checks.built import build_model

        return build_model(self.spec(), self.case(variant))

    @classmethod
    def layout_oracle(cls, tmp_path_factory: Any) -> Oracle:
        """The oracle of this class, which computes the numbers of one process once for all layouts."""
        if "_layout_oracle" not in vars(cls):
            from archon_testing.oracle import Oracle

            cls._layout_oracle = Oracle(tmp_path_factory.mktemp("references"), time_limit=300)
        return cls._layout_oracle

    def case(self, variant: Variant, **fields: Any) -> Case:
        """A ``Case`` of the variant."""
        return variant_case(self.entries(), variant, model=self.model, **fields)

    def test_the_plugin_module_imports_no_torch(self) -> None:
        from archon_testing.model_checks.spec_parts import IMPORT_CHECK, plugin_module

        module = self.plugin or plugin_module(self.spec())
        done = subprocess.run([sys.executable, "-c", IMPORT_CHECK, module], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr.strip() or done.stdout.strip()

    def test_the_spec_is_complete_and_its_parts_fit_each_other(self, variant: Variant) -> None:
        from archon_testing.model_checks.spec_parts import check_spec_parts

        check_spec_parts(self.spec(), self.case(variant), needs_tiny=self.config is None)

    def test_outputs_and_gradients_equal_those_of_transformers(self, variant: Variant) -> None:
        from archon_testing.model_checks.transformers_parity import check_parity

        check_parity(self.build(variant), hf_class=self.hf_class, tolerance=self.tolerance)

    def test_checkpoints_keep_every_bit_and_load_in_transformers(self, variant: Variant, tmp_path: Path) -> None:
        from archon_testing.model_checks.checkpoints import check_round_trip

        check_round_trip(self.build(variant), tmp_path, hf_class=self.hf_class, tolerance=self.tolerance)

    def test_packing_changes_no_number(self, variant: Variant) -> None:
        from archon_testing.model_checks.packing import check_packing

        check_packing(self.build(variant))

    def test_generation_gives_the_log_probabilities_of_training(self) -> None:
        from archon_testing.model_checks.generation import check_generation

        check_generation(self.build("untied"))

    def test_a_layout_gives_the_numbers_of_one_process(self, layout: str, tmp_path_factory: Any) -> None:
        from archon_testing.model_checks.layouts import check_layout

        asked = read_layout(layout)
        entries = RequestedModel(self.spec(), self.entries()).entries_for(asked.n_stages)
        variants = declared_variants(self.spec())
        of_variant = {
            variant: variant_case(entries, variant, model=self.model, layout=str(asked.layout), schedule=asked.schedule)
            for variant in variants
        }
        dtypes = allowed_dtypes(self.spec())
        declared = [read_layout(text) for text in self.layouts or self.declared_layouts()]
        others = [other for other in declared if other.n_stages == 1]
        design = Design(dtypes, variants, (2,), full=False, precision=dtypes[0])
        cases = design.cases(
            of_variant,
            n_stages=asked.n_stages,
            sums_gradients=asked.sums_gradients,
            resume_on=resume_layouts(asked, others),
        )
        check_layout(cases, self.layout_oracle(tmp_path_factory))

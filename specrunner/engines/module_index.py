"""Where a live model's tensors are read: its modules by path, and the points of its name map that exist there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from specrunner.engines.name_maps import HookPoint, NameMap
from specrunner.errors import CaptureIncomplete
from specrunner.spec.tensor_names import PASSES, advise_unmatched, match_name, model_order, select_names
from specrunner.words import suggest

if TYPE_CHECKING:
    import torch


class ModuleIndex:
    """The modules of one model and what its name map reads there, looked up once for all requests.

    A planted fault may put other modules into the model; whoever uses an index calls `refresh` first.

    Args:
        model: the causal language model whose modules the map's paths start from.
        name_map: its architecture's.
        layers: how many it has.

    Attributes:
        model: the same.
        modules: by path; one that stands at several places has several paths.
        points: the points of the map whose modules exist, in the map's order.
    """

    def __init__(self, model: torch.nn.Module, name_map: NameMap, layers: int) -> None:
        self.model = model
        self.modules: dict[str, torch.nn.Module] = {}
        self.points: list[HookPoint] = []
        self._map = name_map
        self._layers = layers
        self._children: list[tuple[torch.nn.Module, dict[str, torch.nn.Module | None]]] = []
        self._paths: dict[torch.nn.Module, list[str]] = {}
        self._chosen: dict[tuple[str, ...], list[HookPoint]] = {}
        self.refresh()

    def refresh(self) -> ModuleIndex:
        """Look everything up anew if the model has other modules than before; return the index itself."""
        if self.modules and all(module._modules == children for module, children in self._children):
            return self
        self.modules = dict(self.model.named_modules(remove_duplicate=False))
        self._children = [(module, dict(module._modules)) for module in self.model.modules()]
        self._paths = {}
        for path, module in self.modules.items():
            self._paths.setdefault(module, []).append(path)
        self.points = [point for point in self._map.hook_points(self._layers) if point.module in self.modules]
        self._chosen = {}
        return self

    def choose(self, patterns: Iterable[str]) -> list[HookPoint]:
        """Choose the points that `patterns` ask for, as `select_points` does.

        Raises:
            CaptureIncomplete: a pattern matches nothing, or a point that is not optional names a module that the model
                does not have; the message says which.
        """
        key = tuple(patterns)
        if key not in self._chosen:
            self._check_map(key)
            self._chosen[key] = select_points(self.points, key)
        return self._chosen[key]

    def find_layers(self, point: HookPoint) -> list[str]:
        """Return the paths, in the order of layers, at which the point's module stands in the place of the point."""
        layer = re.compile(re.escape(point.entry.module).replace(re.escape("{i}"), r"\d+"))
        paths = self._paths[self.modules[point.module]]
        return [path for path in paths if layer.fullmatch(path)]

    def read_constants(self, points: Iterable[HookPoint]) -> dict[str, torch.Tensor]:
        """Return the parameters and buffers that `points` name, copied to the CPU."""
        return {
            point.name: getattr(self.modules[point.module], point.entry.parameter).detach().cpu().clone()
            for point in points
            if point.entry.parameter is not None
        }

    def _check_map(self, patterns: Sequence[str]) -> None:
        """Make sure that the model has every module that the map looks for, of those that `patterns` ask for."""
        for point in self._map.hook_points(self._layers):
            if point.module in self.modules or point.entry.optional:
                continue
            if any(match_name(pattern, point.name) for pattern in patterns):
                where = f"the name map {self._map.engine}/{self._map.family}.yaml"
                near = suggest_module(point.module, self.modules)
                raise CaptureIncomplete(
                    f"the model has no module `{point.module}`, where {where} looks for {point.name}",
                    help=f"did you mean `{near}`?" if near else "print the model to see its modules",
                )


def select_points(points: Sequence[HookPoint], patterns: Iterable[str]) -> list[HookPoint]:
    """Choose the points that `patterns` ask for, in model order; expert weights bring the ids they are ordered by.

    Raises:
        CaptureIncomplete: a pattern (other than `passes.*`) matches nothing.
    """
    patterns = [pattern for pattern in patterns if not pattern.startswith(PASSES)]
    by_name = {point.name: point for point in points}
    for pattern in patterns:
        if not any(match_name(pattern, name) for name in by_name):
            advice = advise_unmatched(pattern, by_name)
            raise CaptureIncomplete(f"no tensor of this model matches {pattern!r}", help=advice)
    wanted = set(select_names(patterns, by_name))
    wanted |= {
        name.removesuffix("expert_weights") + "expert_ids" for name in wanted if name.endswith("router.expert_weights")
    }
    wanted |= {name.removesuffix("logits") + "expert_bias" for name in wanted if name.endswith("router.logits")}
    return [by_name[name] for name in sorted(wanted & set(by_name), key=model_order)]


def suggest_module(path: str, modules: Iterable[str]) -> str | None:
    """Return the module that `path` was probably meant to be, of those of the same layer and expert; or None."""
    numbers = list_numbers(path)
    return suggest(path, (module for module in modules if list_numbers(module) == numbers))


def list_numbers(path: str) -> list[str]:
    """Return the parts of a module's path that count layers, experts and the like."""
    return [part for part in path.split(".") if part.isdecimal()]

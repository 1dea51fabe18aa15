"""Preference methods beside PPO. `extrapolate` needs safetensors only."""

from fgrl.preference.expo import Extrapolation, extrapolate

__all__ = ["Extrapolation", "extrapolate"]

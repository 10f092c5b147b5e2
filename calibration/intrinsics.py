"""Intrinsics from pictures of a board: fit, leave out views that disagree, cross-validate, and judge.

The fit is `calibration.lens_fit`'s. It is judged by views that were held out and by the difference of two halves
(`calibration.lens_quality`), never by its own RMS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration import lens
from calibration.camera import CalibrationError
from calibration.lens_fit import Fit, adjust
from calibration.lens_quality import heldout_rms, projection_sd, screen, seen_rays, tilt_spread, used_area
from calibration.views import Size, View

MIN_VIEWS = 8
BAD_VIEW = 3.0  # a view whose median residual is more than this times the median view's is left out
MIN_TILT = 15.0  # deg, between two views


@dataclass(frozen=True)
class Calibration:
    """A fit with what is needed to trust it (px)."""

    fit: Fit
    rejected: tuple[tuple[str, str], ...]  # name and reason of each view left out
    heldout: float  # RMS of views that the fit has not seen
    crossval: np.ndarray  # [grid] difference of two halves
    predicted: np.ndarray  # [grid] standard deviation of the projection
    used: np.ndarray  # bool[grid] where there were corners, and both maps above have a number
    grid: tuple[int, int]  # rows and columns

    def quality(self) -> dict[str, float]:
        """The numbers that are stored with the calibration and shown; units are in their names."""
        v, u = self.crossval[self.used], self.predicted[self.used]
        return {
            "rms_px": self.fit.rms,
            "heldout_px": self.heldout,
            "crossval_median_px": float(np.median(v)),
            "crossval_p90_px": float(np.quantile(v, 0.9)),
            "uncertainty_median_px": float(np.median(u)),
            "uncertainty_p90_px": float(np.quantile(u, 0.9)),
            "corner_noise_px": self.fit.sigma,
            "board_rms_mm": 1000 * float(np.sqrt((self.fit.shape**2).sum(1).mean())),
        }

    def limits(self) -> dict[str, float]:
        """The most that a number of `quality` may be; the others are not judged."""
        return {
            "rms_px": 1.0,
            "heldout_px": 1.5 * self.fit.rms + 0.1,
            "crossval_median_px": 0.3,
            "crossval_p90_px": 1.0,
        }

    def verdict(self) -> list[str]:
        """Why this must not be used; empty when it may be."""
        q, most = self.quality(), self.limits()
        over = {k for k, limit in most.items() if q[k] > limit}
        out = []
        if "rms_px" in over:
            out.append(
                f"RMS is {q['rms_px']:.2f} px (at most {most['rms_px']:.0f}): pictures are blurred or the board is bent"
            )
        if "heldout_px" in over:
            out.append(
                f"views left out fit much worse ({q['heldout_px']:.2f} px, at most {most['heldout_px']:.2f}) than "
                f"those used ({q['rms_px']:.2f} px)"
            )
        if over & {"crossval_median_px", "crossval_p90_px"}:
            out.append(
                f"two halves of the views disagree by {q['crossval_median_px']:.2f} px (90 %: "
                f"{q['crossval_p90_px']:.2f}; at most {most['crossval_median_px']:.2f} and "
                f"{most['crossval_p90_px']:.2f}): take more, closer and more tilted views"
            )
        return out


def too_few(views: int, rejected: Sequence[tuple[str, str]], fits: str = "") -> CalibrationError:
    """The error for fewer than MIN_VIEWS `views`: names the commonest reason of those `rejected` (name, reason), and
    what `fits` the pictures instead."""
    why = ""
    if rejected:
        # A duplicate's reason names its twin, so each differs.
        kinds = Counter("duplicate of another" if r.startswith("duplicate") else r for _, r in rejected)
        reason, count = kinds.most_common(1)[0]
        why = f"; {count} of {len(rejected)} left out: {reason}"
    return CalibrationError(
        f"only {views} usable views, at least {MIN_VIEWS} are needed (30 are good){why}: {fits or 'take more'}."
    )


def calibrate(
    views: list[View], size: Size, model: str = "rational", left_out: Sequence[tuple[str, str]] = ()
) -> Calibration:
    """Fit, leave out what disagrees, cross-validate. `left_out`: name and reason of pictures that gave no view, for the
    error. Raises CalibrationError with the reason and what to do."""
    views, rejected = screen(views, size)
    if len(views) < MIN_VIEWS:
        raise too_few(len(views), [*left_out, *rejected])
    fit = adjust(views, size, model)
    bad = _disagreeing(fit)
    if bad:
        rejected += [(views[k].name, why) for k, why in bad.items()]
        views = [v for k, v in enumerate(views) if k not in bad]
        if len(views) < MIN_VIEWS:
            raise CalibrationError(
                f"only {len(views)} views agree with one another, at least {MIN_VIEWS} are needed: take more."
            )
        fit = adjust(views, size, model, start=fit)
    spread = tilt_spread(fit.poses)
    if spread < MIN_TILT:
        raise CalibrationError(
            f"the board was hardly tilted ({spread:.0f} degrees between views): tilt it 20 to 45 degrees both ways."
        )
    pixels, shape = lens.grid(*size)
    used = used_area(views, pixels, size) & seen_rays(fit, pixels)
    crossval, predicted = _halves(views, fit, pixels, used), projection_sd(fit, pixels, used)
    used &= np.isfinite(crossval) & np.isfinite(predicted)
    if not used.any():
        raise CalibrationError("the lens has no ray where the corners are: try another --model, or take more views.")
    return Calibration(fit, tuple(rejected), _heldout(views, fit), crossval, predicted, used, shape)


def _disagreeing(fit: Fit) -> dict[int, str]:
    """Index and reason of each view that contradicts the others. Raises CalibrationError when too many do."""
    each = np.array([np.sqrt(np.median((r**2).sum(1))) for r in fit.residuals])
    lost = np.array([1 - k.mean() for k in fit.inlier])
    bad = (each > max(BAD_VIEW * float(np.median(each)), 0.15)) | (lost > 0.4)
    if bad.mean() > 0.4:
        raise CalibrationError(
            f"{int(bad.sum())} of {len(fit.views)} views contradict the others: "
            "check that the board is flat and was not moved in the exposure, and that --board counts its corners right "
            "(a chessboard's inner ones)."
        )
    return {int(k): f"residual {each[k]:.2f} px (blurred, or the board was bent or moved)" for k in np.nonzero(bad)[0]}


def _halves(views: list[View], fit: Fit, pixels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """float64[n] (px): difference at `pixels` of two lenses, one fitted to every second view, one to the others. Views
    that follow one another are alike, so that both halves see the whole picture."""
    a, b = (adjust(views[k::2], fit.size, fit.model, start=fit) for k in (0, 1))
    return lens.difference(a.theta, b.theta, fit.model, fit.model, pixels, used)


def _heldout(views: list[View], fit: Fit) -> float:
    """RMS (px) of every fourth view under the lens, and on the board, that the other views give; over all four
    choices."""
    squares, count = 0.0, 0
    for k in range(4):
        part = adjust([v for i, v in enumerate(views) if i % 4 != k], fit.size, fit.model, start=fit)
        test = part.on_true_board(views[k::4])
        corners = sum(len(v.pixels) for v in test)
        squares += heldout_rms(part.theta, fit.model, test, fit.sigma) ** 2 * corners
        count += corners
    return float(np.sqrt(squares / count))

import numpy as np
import pytest

from rmsprop.notebooks.surfaces import SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_slopes_are_those_of_the_loss(name):
    surface, h = SURFACES[name], 1e-6
    for x, y in (surface.start, (0.3, -0.7), (-1.1, 0.4)):
        slopes = (
            (surface.loss(x + h, y) - surface.loss(x - h, y)) / (2 * h),
            (surface.loss(x, y + h) - surface.loss(x, y - h)) / (2 * h),
        )
        np.testing.assert_allclose(surface.gradient(np.array([x, y])), slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SURFACES)
def test_the_lowest_places_are_minima_on_the_map(name):
    surface = SURFACES[name]
    left, right, bottom, top = surface.view
    around = np.array([(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)])
    for place in surface.lowest:
        np.testing.assert_allclose(surface.gradient(np.array(place)), 0, atol=1e-12)
        assert (surface.loss(*(np.array(place) + around).T) > surface.loss(*place)).all()
        assert left < place[0] < right
        assert bottom < place[1] < top
    assert surface.loss(*surface.start) > surface.loss(*surface.lowest[0])

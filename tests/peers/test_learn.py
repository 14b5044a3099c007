"""The tutorial in a real browser: any Chromium, found on the path or by Playwright itself."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import sleep

import pytest

playwright = pytest.importorskip("playwright.sync_api")
KEPT = Path(__file__).parents[2] / "docs" / "tutorial.html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PICTURES = 10


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as api:
        if found is None and not Path(api.chromium.executable_path).exists():
            pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the path, and Playwright has none of its own")
        launched = api.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(process, address) of the command, listening."""
    command = [sys.executable, "-m", "rmsprop", "learn", "--no-browser"]
    folder = tmp_path_factory.mktemp("learn")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
                break
            sleep(0.3)
        yield process, address
        process.kill()


class Watched:
    """A page, its errors, and where it asked for anything."""

    def __init__(self, browser):
        self.page = browser.new_page()
        self.page.set_default_timeout(120_000)
        self.errors, self.asked = [], []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def picture(self, alt):
        return self.page.get_by_alt_text(alt)

    def move(self, label, key="ArrowRight"):
        """Moves the slider with this label by one place."""
        whole = re.compile(rf"^\s*{re.escape(label)}\s*[\d.e-]+\s*$")  # the label, and the value beside it
        self.page.locator("marimo-slider").filter(has_text=whole).get_by_role("slider").press(key)

    def becomes_another(self, picture, before):
        """Waits until the image is not what it was; what it is then."""
        self.page.wait_for_function("([image, old]) => image.src !== old", arg=[picture.element_handle(), before])
        return picture.get_attribute("src")


@pytest.fixture
def watched(browser, served):
    watched, (_, address) = Watched(browser), served
    watched.page.goto(address)
    watched.page.get_by_role("heading", name="On your own data").wait_for()
    yield watched
    assert watched.errors == []
    assert [url for url in watched.asked if not url.startswith((address, "data:", "blob:"))] == []
    watched.page.close()


def test_it_opens_and_every_picture_appears(watched):
    images = watched.page.locator("img[alt]")
    assert images.count() == PICTURES
    assert all(images.nth(i).evaluate("image => image.naturalWidth") > 500 for i in range(PICTURES))
    assert watched.page.get_by_text("Traceback").count() == 0


def test_a_slider_changes_the_trajectories_and_the_table(watched):
    walks, other = watched.picture("the walks"), watched.picture("a weight that should stay at 0")
    before, beside = walks.get_attribute("src"), other.get_attribute("src")
    row = watched.page.locator("tr", has_text="RMSprop, tutorial").first
    ended = row.inner_text()
    watched.move("lr (Rprop: first step)")
    watched.becomes_another(walks, before)
    assert row.inner_text() != ended
    assert other.get_attribute("src") == beside  # nothing else is computed anew


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("lr of SGD", "ArrowLeft"),
        ("steps", "ArrowRight"),
        ("beta", "ArrowRight"),
        ("epsilon", "End"),
        ("momentum (SGD, RMSprop)", "ArrowRight"),
    ],
)
def test_every_slider_of_the_playground_works(watched, label, key):
    walks = watched.picture("the walks")
    before = walks.get_attribute("src")
    watched.move(label, key)
    watched.becomes_another(walks, before)


def test_another_surface_is_another_map(watched):
    walks = watched.picture("the walks")
    before = walks.get_attribute("src")
    for name in ("Rosenbrock", "saddle", "noisy bowl"):
        watched.page.get_by_label("surface").select_option(name)
        before = watched.becomes_another(walks, before)


def test_training_runs_anew_with_another_epsilon(watched):
    row = watched.page.locator("tr", has_text="tiny")
    before = row.inner_text()
    watched.move("epsilon of the training", "Home")
    watched.page.wait_for_function("([row, old]) => row.innerText !== old", arg=[row.element_handle(), before])


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_is_quiet_while_a_page_is_open(browser, served):
    process, address = served
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("heading", name="RMSprop from the beginning").wait_for()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    page.close()


def test_the_kept_page_is_whole_without_a_network(browser):
    context = browser.new_context(offline=True)
    page, errors = context.new_page(), []
    page.on("console", lambda said: errors.append(said.text))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.goto(KEPT.as_uri())
    images = page.locator("img")
    assert images.count() == PICTURES
    assert all(images.nth(i).evaluate("image => image.naturalWidth") > 500 for i in range(PICTURES))
    assert errors == []
    context.close()

"""The page as it is served: in headless Chromium, which is Debian's, and to those who ask it for files."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image


pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")

from tests.support.demo_cases import Case, make_case


REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = REPOSITORY / "outputs" / "test-screenshots"
MAX_UPLOAD_BYTES = 10 * 2**20
PATIENCE = 30  # seconds for the slowest machine


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return make_case(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """What the documented commands upload as a Space."""
    folder = tmp_path_factory.mktemp("space")
    guide = (REPOSITORY / "demo" / "README.md").read_text()
    for source, target in re.findall(r"^hf upload \S+ (\S+) (\S+) --repo-type space", guide, re.MULTILINE):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / source, folder / target, ignore=ignored, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def address(case, space, tmp_path_factory) -> Iterator[str]:
    """Where a Space's command serves the page, without the repository: its host and port."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, str(space / "app.py"), "--model", str(case.model)]
    variables = {"ASYMVLM_DATASET": str(case.data), "HF_DATASETS_CACHE": str(folder), "GRADIO_TEMP_DIR": str(folder)}
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        environment.pop(name, None)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            said = re.search(r"http://(127\.0\.0\.1:\d+)/", process.stdout.readline())
            assert said is not None, (folder / "log").read_text()
            yield said[1]
        finally:
            process.terminate()
            process.wait(PATIENCE)
            process.stdout.close()


# Without a browser


def requested(address: str, path: str, method: str = "GET", body: bytes | None = None, **headers) -> tuple[int, bytes]:
    """Status and content of exactly this path, which clients would tidy up."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_space_runs_the_package_that_is_uploaded_with_it(address, space):
    compiled = {file.name.split(".")[0] for file in (space / "modeling_asymvlm").glob("*/__pycache__/*")}
    assert {"modeling_asymvlm", "image_index", "conformal"} <= compiled


def test_no_file_can_be_read_through_it_and_nothing_is_told(address, case, space):
    config_file, shard = case.model / "config.json", next((case.model / "embeddings" / "images").iterdir())
    targets = ["/etc/passwd", config_file, shard, space / "app.py", "app.py", "page.css"]
    routes = ("/gradio_api/file=", "/gradio_api/%66ile=", "/gradio_api/file/", "/file=")
    paths = [f"{route}{target}" for route in routes for target in targets]
    up = "../" * 12
    paths += [f"/{folder}/{up}{config_file}" for folder in ("static", "assets", "svelte", "gradio_api/file=static")]
    paths += [f"/{folder}/{up.replace('/', '%2f')}etc/passwd" for folder in ("static", "assets", "svelte")]
    paths += [f"/gradio_api/file={up}etc/passwd", "/gradio_api//file=/etc/passwd", f"/{up}etc/passwd"]
    paths += [f"/gradio_api/file=http://{address}/", f"/gradio_api/proxy=http://{address}/"]
    for path in paths:
        status, content = requested(address, path)
        assert status in (403, 404), path
        assert not any(secret in content for secret in (b"root:", b"projection_dim", b"PAR1", b"argparse")), path

    status, content = requested(address, "/config")
    config = json.loads(content)
    assert status == 200 and not config["analytics_enabled"]
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])
    assert not any(str(folder).encode() in content for folder in (REPOSITORY, space, case.model, case.data))

    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(MAX_UPLOAD_BYTES + 1) + b"\r\n--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    status, content = requested(address, "/gradio_api/upload", "POST", body, **kind)
    assert status in (400, 413) and b"exceeded" in content


# With a browser


@pytest.fixture
def browser(tmp_path, monkeypatch):
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[dev]'")
    monkeypatch.setenv("SE_OFFLINE", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{argument}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


class Visitor:
    """Someone before the page."""

    def __init__(self, browser, address: str):
        self.browser = browser
        self.resize(1200, 1500)
        browser.get(f"http://{address}/")
        self.wait_for("#captions .captions li")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent.trim())"
        return self.browser.execute_script(script, selector)

    def wait_for(self, selector: str, text: str = "") -> list[str]:
        """The texts of what there is of a selector, once one of them holds `text`."""
        return self.wait_until(lambda: [found for found in self.texts(selector) if text in found], f"{text!r}")

    def wait_until(self, condition, what: str):
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end, f"waited for {what}; the page says {self.texts('body')}"
            time.sleep(0.05)
        return found

    def type(self, text: str, *, instead: bool = False) -> float:
        """Types into the prompt, and gives the uncertainty once it is that of all of its words."""
        box = self.browser.find_element("css selector", "#prompt textarea")
        if instead:
            box.send_keys("\ue009a\ue000")  # Control-A
        box.send_keys(text)
        words = box.get_property("value").split()
        self.wait_until(lambda: self.texts("#reading .chip") == words, f"the words {words}")
        return float(self.texts("#reading .uncertainty")[0])

    def upload(self, file: Path) -> None:
        self.browser.find_element("css selector", "input[type=file]").send_keys(str(file))

    def keep_screenshot(self, name: str) -> None:
        time.sleep(0.5)  # until what moves has come to rest
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        height = self.browser.execute_script("return document.documentElement.scrollHeight")
        clip = {
            "x": 0,
            "y": 0,
            "width": self.browser.execute_script("return innerWidth"),
            "height": height,
            "scale": 1,
        }
        taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def test_typing_clicking_and_uploading_change_the_page_and_nothing_is_fetched_from_elsewhere(
    browser, address, case, tmp_path
):
    visitor = Visitor(browser, address)

    first = visitor.type("3 7", instead=True)
    longer = visitor.type(" red picture")
    assert first != longer
    assert [change[-1] for change in visitor.texts("#reading .change")] == ["%"] * 4
    assert visitor.type("\ue003" * len(" red picture")) == first  # Backspace
    visitor.keep_screenshot("prompt")

    cards = visitor.texts("#pictures .card .percent")
    assert len(cards) == 12 and cards[0].endswith("%")
    images = browser.find_elements("css selector", "#pictures .card img")
    assert all(image.get_property("naturalWidth") == 32 for image in images)
    assert visitor.texts("#pictures .summary")[0].find("at least 90 %") > 0
    browser.find_elements("css selector", "#alpha label")[2].click()
    summary = visitor.wait_for("#pictures .summary", "at least 80 %")[0]
    inside = len(browser.find_elements("css selector", "#pictures .card.inside"))
    assert str(inside) in summary or inside == 12

    box = browser.find_element("css selector", "#prompt textarea")
    box.send_keys(" red" * 20)
    visitor.wait_for("#reading .message", "context of the backbone is 16")
    assert visitor.texts("#pictures .card") == []
    box.clear()
    box.send_keys(" ")
    visitor.wait_for("#reading .message", "empty")
    visitor.type("<b>3</b>", instead=True)

    broken, tall, huge = (tmp_path / f"{name}.png" for name in ("broken", "tall", "huge"))
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "PNG")
    broken.write_bytes(content.getvalue()[:1500])
    Image.new("1", (5001, 5000)).save(tall)
    huge.write_bytes(bytes(MAX_UPLOAD_BYTES + 1))
    visitor.upload(broken)
    visitor.wait_for("#captions .message", "broken")
    visitor.upload(tall)
    visitor.wait_for("#captions .message", "more than 25 million pixels")
    visitor.upload(huge)
    visitor.wait_for(".toast-body", "exceed the maximum allowed size")
    visitor.keep_screenshot("refused")
    visitor.upload(case.data / "images" / "3.png")
    posteriors = visitor.wait_for("#captions .captions .percent")
    assert len(posteriors) == 8
    uploaded = browser.find_element("css selector", "#captions img").get_attribute("src")
    browser.find_element("xpath", "//button[contains(., 'gallery')]").click()
    visitor.wait_until(
        lambda: browser.find_element("css selector", "#captions img").get_attribute("src") != uploaded, "a new picture"
    )

    visitor.resize(1200, 1500)
    visitor.keep_screenshot("wide")
    visitor.resize(390, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    visitor.keep_screenshot("narrow")

    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
    urls += [entry["params"]["url"] for entry in entries if entry["method"] == "Network.webSocketCreated"]
    schemes = ("http", "https", "ws", "wss")
    assert {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in schemes} == {address}
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("/gradio_api/upload" in complaint for complaint in complaints)

"""Pages in a real browser: headless Chromium, driven through chromedriver."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@dataclass(frozen=True)
class Sight:
    """What came of opening a page once."""

    errors: list[str]
    """Complaints on the console, uncaught exceptions among them."""
    requests: list[str]
    """Everything that was asked for beside the page itself and data: URIs."""
    scroll_width: int
    """CSS pixels that the page is wide; more than window_width is a page that scrolls sideways."""
    window_width: int
    screenshot: bytes
    """PNG of the whole page."""
    value: Any
    """What the script returned."""


class Browser:
    """An open browser; `look` opens a page afresh each time."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def look(
        self, path: Path, *, width: int = 1280, dark: bool = False, script: str = "return null"
    ) -> Sight:
        """Open a page at a width in CSS pixels and a colour scheme, then run a script on it."""
        command = self.driver.execute_cdp_cmd
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        command("Emulation.setDeviceMetricsOverride", {**size, "mobile": width < 600})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        address = path.resolve().as_uri()
        self.driver.get_log("browser"), self.driver.get_log("performance")  # empties both
        self.driver.get(address)
        value, scroll_width, window_width = self.driver.execute_script(
            "const root = document.documentElement;"
            f"const value = (() => {{ {script} }})();"
            "return [value, root.scrollWidth, root.clientWidth];"
        )
        shot = command("Page.captureScreenshot", {"captureBeyondViewport": True})
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        complaints = [entry["message"] for entry in self.driver.get_log("browser")]
        return Sight(
            errors=complaints,
            requests=[url for url in asked if url != address and not url.startswith("data:")],
            scroll_width=scroll_width,
            window_width=window_width,
            screenshot=base64.b64decode(shot["data"]),
            value=value,
        )


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser for the length of the block; AssertionError that says what to install."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, (
        f"{' and '.join(missing)} not found: "
        "sudo apt-get install -y --no-install-recommends chromium chromium-driver"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"] or ""
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Both paths are given, so that selenium does not go looking for a driver to download.
    driver = webdriver.Chrome(options, Service(programs["chromedriver"]))
    driver.set_page_load_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()

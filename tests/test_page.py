"""The page in a real browser: one is needed, with its driver."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import CONFIG, Running, held_at, running, wait_until

webdriver = pytest.importorskip("selenium.webdriver")
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="no chromium with chromedriver here")
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1100,800"),
]
WORDS, JUNCTIONS = ".text > span", ".junction, .turned"


@pytest.fixture
def on(make_gguf: Callable[..., Path], value_gguf: Path) -> Iterator[Running]:
    with running(make_gguf("base", ascii=True), value_gguf, slots=2, config=replace(CONFIG, beta=0.1)) as server:
        yield server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_person_chats_looks_at_junctions_and_compares(on: Running, browser: Any) -> None:
    def all_of(selector: str) -> list[Any]:
        return browser.find_elements("css selector", selector)

    def press(key: str) -> None:
        browser.switch_to.active_element.send_keys(key)

    keys = webdriver.Keys
    browser.get(on.url)
    wait_until(lambda: bool(all_of("#dials:not([hidden])")))
    # Also where it is no step of the dial.
    assert "0.05 spreads" in all_of("#beta-is")[0].text
    with held_at(on.server.engine, 8):
        press("A dog" + keys.ENTER)
        wait_until(lambda: len(all_of(WORDS)) > 5)
        # What is typed meanwhile waits.
        press("Then" + keys.ENTER)
        assert all_of(".running") and all_of("#box")[0].get_attribute("value") == "Then"
        press(keys.ESCAPE)
        wait_until(lambda: "stopped" in all_of(".closing")[0].text)
    wait_until(lambda: on.idle() and not all_of(".running"))
    assert "A dog" in all_of(".asked")[0].text

    # The strength counts from the next answer on; both sides come with one click.
    browser.execute_script(
        "const d = document.getElementById('beta'); d.value = -4; d.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(
        "const d = document.getElementById('rate'); d.value = 100; d.dispatchEvent(new Event('input'))"
    )
    assert "-4 spreads" in all_of("#beta-is")[0].text and "100 %" in all_of("#rate-is")[0].text
    all_of("#both")[0].click()
    all_of("#box")[0].send_keys("A cat" + keys.ENTER)
    wait_until(lambda: len(all_of(".answers.two .closing span")) > 4)
    base, steered = all_of(".answers.two .answer")
    assert not base.find_elements("css selector", ".junction") and steered.find_elements("css selector", ".turned")

    # By mouse, then by keyboard, from junction to junction.
    first, second = steered.find_elements("css selector", JUNCTIONS)[:2]
    first.click()
    wait_until(lambda: len(all_of("#why tbody tr")) == 10)
    assert all_of("#why tr.taken")
    press(keys.SHIFT + keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == second
    press(keys.NULL + keys.ESCAPE)
    assert all_of("#why[hidden]")
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked and all(name.startswith((on.url, "data:")) for name in asked)


def test_the_share_is_said_where_it_is_in_force(make_gguf: Callable[..., Path], value_gguf: Path, browser: Any) -> None:
    by_share = replace(CONFIG, gate="gain", rate=0.4)
    for config, said, idle in ((by_share, "40 %", 0), (replace(by_share, gain_threshold=0.1), "where it gains", 1)):
        with running(make_gguf("base", ascii=True), value_gguf, config=config) as server:
            browser.get(server.url)
            wait_until(lambda: browser.find_elements("css selector", "#dials:not([hidden])"))
            assert said in browser.find_element("css selector", "#rate-is").text
            assert len(browser.find_elements("css selector", "#rate.idle")) == idle


def test_a_full_context_forgets_the_oldest_turns_and_a_failed_one_is_not_said_again(
    make_gguf: Callable[..., Path], browser: Any
) -> None:
    with running(make_gguf("base", ascii=True), None, slots=1, n_ctx=128) as server:
        browser.get(server.url)
        wait_until(lambda: "no value model" in browser.find_element("css selector", "#models").text)

        def ask(text: str, n: int) -> list[str]:
            browser.find_element("css selector", "#box").send_keys(text + webdriver.Keys.ENTER)
            ended = lambda: browser.find_elements("css selector", ".answer:not(.running) .closing span:last-child")  # noqa: E731
            wait_until(lambda: len(ended()) == n)
            return [closing.text for closing in browser.find_elements("css selector", ".closing")]

        assert "context holds" in ask("x" * 200, 1)[-1]
        for n in range(2, 6):
            said = ask("A dog", n)
        assert "the oldest turns are forgotten" in said[-1] and "context holds" not in "".join(said[1:])

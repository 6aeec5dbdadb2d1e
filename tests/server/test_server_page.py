"""The chat page in a real headless browser, offline but for the loopback server."""

import re
import shutil

import httpx
import pytest
from waiting import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (chromium, google-chrome)")


def test_the_page_and_its_files_are_served_under_a_strict_policy(url):
    page = httpx.get(url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    found, texts = set(), [page.text]
    while texts:
        new = set(re.findall(r'"(/page/[\w.]+)"', texts.pop())) - found
        found |= new
        texts += [httpx.get(url + name).text for name in new]
    assert len(found) == 8
    for name in found:
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        assert httpx.get(url + name).headers["content-type"] == f"{kind}; charset=utf-8"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """The page, loaded; at the end it must have asked no other host and broken no policy."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.set_default_timeout(10_000)
    page.goto(url)
    page.locator("#model option").nth(1).wait_for(state="attached")
    yield page
    assert all(address.startswith((url, "data:")) for address in asked)
    assert [c for c in complaints if "the server responded with a status of" not in c] == []
    context.close()


def send(page, text):
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".turn.assistant:not(.streaming)")


@needs_browser
def test_two_turns_stream_with_figures(page, engine, tokenizer, client):
    engine.pause = 0.01
    page.get_by_label("Model").select_option("talker")
    send(page, "Capital of France?")
    page.locator(".turn.assistant.streaming .stats").filter(has_text="tokens/s").wait_for()
    answers(page).nth(0).wait_for()
    assert answers(page).nth(0).locator(".text").inner_text() == "Bonjour! Paris is the capital. Voilà 😀"
    assert answers(page).nth(0).locator(".text strong").inner_text() == "the"
    tokens = len(tokenizer.encode(engine.reply))
    assert re.match(rf"{tokens} tokens · [\d.]+ tokens/s · first after", page.locator(".stats").inner_text())
    page.get_by_label("Your message").press("Shift+Enter")
    send(page, "And of\nItaly?")
    answers(page).nth(1).wait_for()
    prompt = tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)
    assert "Capital of France?<|im_end|>\n<|im_start|>assistant\nBonjour! Paris is **the** capital." in prompt
    assert "<|im_start|>user\nAnd of\nItaly?<|im_end|>" in prompt
    assert re.match(r"\d+ of 200 tokens", page.locator("#context").inner_text())


@needs_browser
def test_stop_by_button_and_by_key_then_regenerate(page, engine):
    engine.pause = 0.3
    send(page, "hello")
    page.locator(".streaming .stats").filter(has_text="token").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".stats").filter(has_text="stopped").wait_for()
    page.locator("#status").filter(has_text="Stopped.").wait_for(state="attached")
    until(lambda: len(engine.aborted) == 1)
    page.get_by_role("button", name="Regenerate").click()
    page.locator(".streaming .stats").filter(has_text="token").wait_for()
    page.keyboard.press("Escape")
    answers(page).wait_for()
    assert answers(page).count() == 1
    assert len(engine.asked) == 2
    assert engine.asked[0][0] == engine.asked[1][0]
    until(lambda: not engine.running)


@needs_browser
def test_settings_reach_the_engine_and_survive_a_reload(page, engine, tokenizer):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Top-p").fill("0.5")
    page.get_by_label("Max tokens").fill("3")
    page.get_by_label("Seed").fill("7")
    page.reload()
    page.locator("#model option").nth(1).wait_for(state="attached")
    send(page, "hi")
    answers(page).wait_for()
    prompt, params = engine.asked[0]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in tokenizer.decode(prompt, skip_special_tokens=False)
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.2, 0.5, 3, 7)


@needs_browser
def test_what_a_model_writes_never_becomes_html(page, engine):
    engine.reply = (
        "<img src=x onerror=alert(1)> **bold** `<b>` [x](javascript:alert(1)) [ok](https://example.org)\n\n"
        "```python\nprint('<script>')\n```\n- one\n- two\n  1. deep\n"
    )
    engine.max_model_len = 1000
    send(page, "<i>hi</i>")
    answers(page).wait_for()
    text = answers(page).locator(".text")
    assert page.locator("img, .text script, .text b, .turn i").count() == 0
    assert text.locator("a").evaluate_all("all => all.map(a => a.href)") == ["https://example.org/"]
    assert text.locator("pre").inner_text() == "print('<script>')"
    assert text.locator("ul > li").count() == 2
    assert text.locator("ul ol li").inner_text() == "deep"
    text.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print('<script>')"


@needs_browser
def test_an_answer_can_be_traced(page, client):
    send(page, "hi")
    answers(page).wait_for()
    page.get_by_role("button", name="Trace").click()
    command = page.locator(".trace .command code").inner_text()
    assert re.fullmatch(r"lmworks trace chatcmpl-[0-9a-f]{32}", command)
    page.locator(".trace .tree").filter(has_text="(gone)").wait_for()
    page.locator(".trace").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == command


@needs_browser
def test_a_base_model_continues_text(page, base_engine):
    page.get_by_label("Model").select_option("base")
    assert "no chat template" in page.locator("#about").inner_text()
    send(page, "Trees")
    answers(page).wait_for()
    assert answers(page).locator(".text").evaluate("e => e.textContent") == " and so on."
    send(page, " Then")
    answers(page).nth(1).wait_for()
    asked = [base_engine.tokenizer.decode(prompt) for prompt, _ in base_engine.asked]
    assert asked == ["Trees", "Trees and so on. Then"]


@needs_browser
def test_a_refusal_is_shown_and_can_be_tried_again(page, engine):
    engine.max_model_len = 5
    send(page, "a rather long question for so small a context")
    page.get_by_role("alert").filter(has_text="maximum context length is 5 tokens").wait_for()
    engine.max_model_len = 200
    page.get_by_role("button", name="Try again").click()
    answers(page).filter(has_text="Bonjour").wait_for()
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0


@needs_browser
def test_a_key_is_asked_for_once(browser, start):
    url = start(api_key="secret").url
    page = browser.new_page()
    page.goto(url)
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    send(page, "hi")
    answers(page).filter(has_text="Bonjour").wait_for()
    page.close()


@needs_browser
def test_the_bar_fits_a_phone(browser, url):
    page = browser.new_page(viewport={"width": 340, "height": 640})
    page.goto(url)
    page.locator("#suggestions button").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 340
    page.close()

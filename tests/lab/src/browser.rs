//! A headless browser with one page that a test opens, reads, types into and photographs.

use std::fmt::Debug;
use std::process::Command;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::devtools::Devtools;
use crate::netns::Netns;
use crate::rootfs::Rootfs;
use crate::wait::{TIMEOUT, within};

/// Debian's browser; check for it with [`require_tool`](crate::tool::require_tool) first.
pub const CHROMIUM: &str = "chromium";
/// Flags of Chromium. It runs as root, possibly without a GPU or shared memory, and must not
/// request updates.
const FLAGS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
];

/// A browser with one page. Dropping it kills it and removes its profile.
#[derive(Debug)]
pub struct Browser {
    devtools: Devtools,
    session: String,
    _profile: Rootfs,
}

/// The reader's preferred colour scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

// === impl Browser ===

impl Browser {
    /// Starts Chromium inside `ns` with an empty page; Chromium opens no port there.
    ///
    /// # Panics
    ///
    /// When Chromium does not start.
    #[must_use]
    pub fn start(ns: &Netns) -> Self {
        Self::try_start(ns).unwrap_or_else(|e| panic!("starting {CHROMIUM}: {e:#}"))
    }

    fn try_start(ns: &Netns) -> Result<Self> {
        let profile = Rootfs::new();
        let mut command: Command = ns.command(CHROMIUM);
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display()));
        // Files outside the profile would outlive a browser that is killed.
        command.env("TMPDIR", profile.path()).env("HOME", profile.path());
        let mut devtools = Devtools::start(command.arg("about:blank"))?;
        let session = attach(&mut devtools)?;
        let mut browser = Self { devtools, session, _profile: profile };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Ok(browser)
    }

    /// Opens a page and waits until the page is fully loaded. Requests and errors of earlier pages
    /// are forgotten.
    ///
    /// # Panics
    ///
    /// When the page cannot be loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.devtools.events.clear();
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "opening {url}: {}", answer["errorText"]);
        checked(self.devtools.await_event("Page.loadEventFired", 0));
    }

    /// Evaluates a JavaScript expression and returns its value as JSON; a promise is awaited.
    ///
    /// # Panics
    ///
    /// When the expression throws.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression} threw {thrown}");
        answer["result"]["value"].take()
    }

    /// Evaluates a JavaScript expression repeatedly until it is true.
    ///
    /// # Panics
    ///
    /// When the expression is not true within 30 s; the message contains the text of the page.
    #[track_caller]
    pub fn await_true(&mut self, expression: &str) {
        let question = || (self.evaluate(expression) == true).then_some(());
        if within(TIMEOUT, question).is_none() {
            let text = self.evaluate("document.body.innerText");
            panic!("waited {TIMEOUT:?} in vain for {expression}; the page says {text}");
        }
    }

    /// The current document as HTML.
    #[track_caller]
    pub fn dom(&mut self) -> String {
        text(&self.evaluate("document.documentElement.outerHTML"))
    }

    /// The rendered text of all elements that match a CSS selector, in document order.
    #[track_caller]
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let found = format!("document.querySelectorAll({})", json!(selector));
        let texts = self.evaluate(&format!("Array.from({found}, e => e.innerText)"));
        texts.as_array().map(|texts| texts.iter().map(text).collect()).unwrap_or_default()
    }

    /// Replaces the value of an input, key by key.
    ///
    /// # Panics
    ///
    /// When the selector matches no input.
    #[track_caller]
    pub fn type_into(&mut self, selector: &str, text: &str) {
        let input = format!("document.querySelector({})", json!(selector));
        self.evaluate(&format!("{input}.focus(), {input}.select()"));
        self.press(&json!({ "key": "Backspace", "windowsVirtualKeyCode": 8 }));
        for letter in text.chars() {
            self.press(&json!({ "key": letter, "text": letter }));
        }
    }

    #[track_caller]
    fn press(&mut self, key: &Value) {
        for way in ["keyDown", "keyUp"] {
            let mut key = key.clone();
            key["type"] = way.into();
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    /// Clicks an element with its own `click()`.
    ///
    /// # Panics
    ///
    /// When the selector matches no element.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        self.evaluate(&format!("document.querySelector({}).click()", json!(selector)));
    }

    /// Sets the window size in CSS pixels, and the preferred colour scheme.
    #[track_caller]
    pub fn view(&mut self, width: u32, height: u32, scheme: Scheme) {
        let window =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", window);
        let preferred = json!({ "name": "prefers-color-scheme", "value": scheme.name() });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [preferred] }));
    }

    /// Sets whether pages opened later may run scripts; [`Browser::evaluate`] always can.
    #[track_caller]
    pub fn allow_script(&mut self, allowed: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !allowed }));
    }

    /// A PNG of the whole page, with the width of the window.
    #[track_caller]
    pub fn screenshot(&mut self) -> Vec<u8> {
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].take();
        let clip =
            json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let answer = self.call("Page.captureScreenshot", params);
        checked(STANDARD.decode(text(&answer["data"])).context("decoding a screenshot"))
    }

    /// The URL of every request since the page was opened, in order; the page's own URL is first.
    #[track_caller]
    pub fn requests(&mut self) -> Vec<String> {
        self.events_of("Network.requestWillBeSent", |event| text(&event["request"]["url"]))
    }

    /// The errors since the page was opened: uncaught exceptions, `console.error`, and the
    /// browser's own complaints, such as a blocked or missing resource.
    #[track_caller]
    pub fn errors(&mut self) -> Vec<String> {
        let thrown = self.events_of("Runtime.exceptionThrown", |event| {
            let details = &event["exceptionDetails"];
            format!("{} {}", text(&details["text"]), text(&details["exception"]["description"]))
        });
        let printed = self.events_of("Runtime.consoleAPICalled", |event| {
            if event["type"] == "error" { event["args"].to_string() } else { String::new() }
        });
        let logged = self.events_of("Log.entryAdded", |event| {
            let entry = &event["entry"];
            if entry["level"] != "error" {
                return String::new();
            }
            format!("{} {}", text(&entry["text"]), text(&entry["url"]))
        });
        let all = thrown.into_iter().chain(printed).chain(logged);
        all.filter(|error| !error.is_empty()).collect()
    }

    /// Applies `read` to the parameters of each event of this name.
    #[track_caller]
    fn events_of(&mut self, method: &str, read: impl Fn(&Value) -> String) -> Vec<String> {
        // Events that were sent before this answer arrive before the answer.
        self.call("Runtime.evaluate", json!({ "expression": "0" }));
        let events = self.devtools.events.iter().filter(|event| event["method"] == method);
        events.map(|event| read(&event["params"])).collect()
    }

    #[track_caller]
    #[allow(clippy::needless_pass_by_value, reason = "callers make the parameters for this call")]
    fn call(&mut self, method: &str, params: Value) -> Value {
        checked(self.devtools.call(Some(&self.session), method, &params))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium closes its helper processes on request; the rest is killed.
        let _ = self.devtools.call(None, "Browser.close", &json!({}));
    }
}

// === impl Scheme ===

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// Attaches to the only page and returns its session.
fn attach(devtools: &mut Devtools) -> Result<String> {
    let targets = devtools.call(None, "Target.getTargets", &json!({}))?;
    let targets = targets["targetInfos"].as_array().context("a list of targets")?;
    let page = targets.iter().find(|target| target["type"] == "page").context("no page")?;
    let params = json!({ "targetId": page["targetId"], "flatten": true });
    let answer = devtools.call(None, "Target.attachToTarget", &params)?;
    Ok(text(&answer["sessionId"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn checked<T: Debug>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("the browser: {e:#}"))
}

//! Owns a headless browser with one page: opened, read, typed into, and photographed by a test.

use std::fmt::Debug;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::devtools::Devtools;
use crate::netns::Netns;
use crate::rootfs::Rootfs;
use crate::wait::within;

/// Debian's browser; ask [`require_tool`](crate::tool::require_tool) for it first.
pub const CHROMIUM: &str = "chromium";
/// How long a page may take to show what is awaited.
const PATIENCE: Duration = Duration::from_secs(30);
/// It runs as root, where the kernel may lack a GPU and shared memory, and shall ask nobody for news.
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

/// The colour scheme the reader prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

// === impl Browser ===

impl Browser {
    /// Starts Chromium inside `ns` with an empty page; it opens no port there.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start(ns: &Netns) -> Self {
        Self::try_start(ns).unwrap_or_else(|e| panic!("starting {CHROMIUM}: {e:#}"))
    }

    fn try_start(ns: &Netns) -> Result<Self> {
        let profile = Rootfs::new();
        let mut command: Command = ns.command(CHROMIUM);
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display()));
        // What it writes elsewhere would outlive a browser that is killed.
        command.env("TMPDIR", profile.path()).env("HOME", profile.path());
        let mut devtools = Devtools::start(command.arg("about:blank"))?;
        let session = attach(&mut devtools)?;
        let mut browser = Self { devtools, session, _profile: profile };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Ok(browser)
    }

    /// Opens a page and waits until all of it is loaded. Requests and errors of earlier pages are forgotten.
    ///
    /// # Panics
    ///
    /// When it cannot be loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.devtools.events.clear();
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "opening {url}: {}", answer["errorText"]);
        checked(self.devtools.await_event("Page.loadEventFired", 0));
    }

    /// The value of a JavaScript expression, as JSON; a promise is awaited.
    ///
    /// # Panics
    ///
    /// When it throws.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression} threw {thrown}");
        answer["result"]["value"].take()
    }

    /// Asks again and again until a JavaScript expression is true.
    ///
    /// # Panics
    ///
    /// When it does not become true in 30 s: with the text of the page.
    #[track_caller]
    pub fn await_true(&mut self, expression: &str) {
        let question = || (self.evaluate(expression) == true).then_some(());
        if within(PATIENCE, question).is_none() {
            let text = self.evaluate("document.body.innerText");
            panic!("waited {PATIENCE:?} in vain for {expression}; the page says {text}");
        }
    }

    /// The document as it is now, as HTML.
    #[track_caller]
    pub fn dom(&mut self) -> String {
        text(&self.evaluate("document.documentElement.outerHTML"))
    }

    /// The text, as rendered, of all elements that a CSS selector finds, in the order of the document.
    #[track_caller]
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let found = format!("document.querySelectorAll({})", json!(selector));
        let texts = self.evaluate(&format!("Array.from({found}, e => e.innerText)"));
        texts.as_array().map(|texts| texts.iter().map(text).collect()).unwrap_or_default()
    }

    /// Replaces what an input holds, key by key.
    ///
    /// # Panics
    ///
    /// When the selector finds no input.
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

    /// Clicks an element as its own `click()` does.
    ///
    /// # Panics
    ///
    /// When the selector finds none.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        self.evaluate(&format!("document.querySelector({}).click()", json!(selector)));
    }

    /// Makes the window so large, in CSS pixels, for a reader who prefers this colour scheme.
    #[track_caller]
    pub fn view(&mut self, width: u32, height: u32, scheme: Scheme) {
        let window =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", window);
        let preferred = json!({ "name": "prefers-color-scheme", "value": scheme.name() });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [preferred] }));
    }

    /// Whether pages opened from now on may run scripts; [`Browser::evaluate`] still can.
    #[track_caller]
    pub fn allow_script(&mut self, allowed: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !allowed }));
    }

    /// A PNG of the whole page, as wide as the window.
    #[track_caller]
    pub fn screenshot(&mut self) -> Vec<u8> {
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].take();
        let clip =
            json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let answer = self.call("Page.captureScreenshot", params);
        checked(STANDARD.decode(text(&answer["data"])).context("decoding a screenshot"))
    }

    /// The URL of every request made since the page was opened, in order, its own first.
    #[track_caller]
    pub fn requests(&mut self) -> Vec<String> {
        self.events_of("Network.requestWillBeSent", |event| text(&event["request"]["url"]))
    }

    /// What went wrong since the page was opened: exceptions nobody caught, `console.error`, and what the
    /// browser itself complained about, such as a blocked or missing resource.
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

    /// What `read` makes of the parameters of each event of this name.
    #[track_caller]
    fn events_of(&mut self, method: &str, read: impl Fn(&Value) -> String) -> Vec<String> {
        // What was told before this answer has arrived before it.
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
        // One that is asked takes its helpers along; the rest is killed.
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

/// Attaches to the one page there is, and gives its session.
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

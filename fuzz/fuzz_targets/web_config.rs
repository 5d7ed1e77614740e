//! Parses any text as a web configuration, alone and below each of its keys, and any bytes as a
//! certificate. Nothing may panic, and the error about an invalid file must be one line without any of
//! its values.
#![no_main]

use libfuzzer_sys::fuzz_target;
use listenq::web_config::certificate::Certificate;
use listenq::web_config::file::File;
use listenq::web_config::headers;
use listenq::web_config::rate_limit::RateLimit;
use listenq::web_config::users::Users;

const SECRET: &str = "hunter2 hunter2";

fuzz_target!(|bytes: &[u8]| {
    let _ = Certificate::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check(text);
    for above in ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"] {
        let below: String = text.lines().map(|line| format!("  {line}\n")).collect();
        check(&format!("{above}:\n{below}"));
        check(&format!("{above}:\n  {SECRET}\n{below}"));
    }
});

fn check(text: &str) {
    let fault = match File::parse(text) {
        Err(fault) => fault,
        Ok(file) => match validate(&file) {
            Err(fault) => fault,
            Ok(()) => return,
        },
    };
    assert!(!fault.what.contains('\n') && !fault.what.contains(SECRET), "{fault:?}");
    assert!(fault.line <= text.lines().count() as u64 + 1, "{fault:?}");
}

fn validate(file: &File) -> Result<(), listenq::web_config::file::Fault> {
    if let Some(users) = &file.basic_auth_users {
        assert!(Users::parse(users)?.len() <= users.len());
    }
    if let Some(headers) = file.http_server_config.as_ref().and_then(|http| http.headers.as_ref()) {
        headers::parse(headers)?;
    }
    if let Some(limit) = &file.rate_limit {
        assert!(RateLimit::parse(limit)?.is_none_or(|limit| limit.burst > 0));
    }
    Ok(())
}

//! Credentials and region from the files that AWS's own programs keep.
//!
//! Invariant: what is read is in no message. Must not know: what credentials are for.

use std::path::{Path, PathBuf};

/// Who asks.
pub(super) struct Credentials {
    pub key_id: String,
    pub secret: String,
    pub token: Option<String>,
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn file(named_by: &str, name: &str) -> Option<PathBuf> {
    let named = var(named_by).map(PathBuf::from);
    named.or_else(|| Some(Path::new(&var("HOME")?).join(".aws").join(name)))
}

fn profile() -> String {
    var("AWS_PROFILE").unwrap_or_else(|| "default".into())
}

/// Those of the profile; `None` when there are none. `Err`: the profile was named and has none that can be used.
pub(super) fn credentials() -> Result<Option<Credentials>, String> {
    let path = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    let found = text.and_then(|text| credentials_in(&text, &profile()));
    if found.is_none() && var("AWS_PROFILE").is_some() {
        let path = path.map_or_else(String::new, |p| p.display().to_string());
        return Err(format!("the profile {} has no access key in {path}", profile()));
    }
    Ok(found)
}

/// The region of the profile.
pub(super) fn region() -> Option<String> {
    let text = std::fs::read_to_string(file("AWS_CONFIG_FILE", "config")?).ok()?;
    region_in(&text, &profile())
}

fn credentials_in(text: &str, profile: &str) -> Option<Credentials> {
    let value = |name| setting(text, profile, name);
    let (key_id, secret) = (value("aws_access_key_id")?, value("aws_secret_access_key")?);
    Some(Credentials { key_id, secret, token: value("aws_session_token") })
}

fn region_in(text: &str, profile: &str) -> Option<String> {
    let section = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
    setting(text, &section, "region")
}

/// The value of a name in a section.
fn setting(text: &str, section: &str, name: &str) -> Option<String> {
    let mut within = false;
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[') {
            within = head.split(']').next().is_some_and(|h| h.trim() == section);
        } else if within && let Some((key, value)) = line.split_once('=') {
            let value = value.trim();
            if key.trim() == name && !value.is_empty() {
                return Some(value.to_owned());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_sections() {
        let text = "# mine\n[default]\naws_access_key_id = one\naws_secret_access_key=two=\n\n[ci]\n\
                    aws_access_key_id=three\naws_secret_access_key = four\naws_session_token = five\n[half]\n\
                    aws_access_key_id = six\n";
        let found = credentials_in(text, "default").unwrap();
        assert_eq!((&found.key_id[..], &found.secret[..], found.token), ("one", "two=", None));
        let found = credentials_in(text, "ci").unwrap();
        assert_eq!((&found.secret[..], found.token.as_deref()), ("four", Some("five")));
        assert!(credentials_in(text, "half").is_none() && credentials_in(text, "none").is_none());
        let config = "[default]\nregion=eu-1\n[profile ci]\nregion = eu-2\n";
        assert_eq!(region_in(config, "default").as_deref(), Some("eu-1"));
        assert_eq!(region_in(config, "ci").as_deref(), Some("eu-2"));
        assert_eq!(region_in(config, "other"), None);
    }
}

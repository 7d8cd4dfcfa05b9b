//! Where a recording may go that is asked for over the admin API: the key opens the balancer, not the disk.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::config::RecordConfig;
use crate::policy::versions::timestamp;

/// How the name of a trace ends; another file of the folder is none of a recording's business.
const ENDINGS: [&str; 2] = [".jsonl", ".jsonl.zst"];

/// The file for a recording: the named one inside the record folder, else the configured one, else one that is named
/// after the moment. An error says why not, and the way out.
pub(super) fn asked_for(config: &RecordConfig, name: Option<&str>, now_us: u64) -> Result<PathBuf, String> {
    let Some(name) = name else {
        if let Some(path) = &config.path {
            return Ok(path.clone());
        }
        let moment: String = timestamp(now_us).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        return Ok(folder(config)?.join(format!("usher-{moment}.trace.jsonl.zst")));
    };
    let folder = folder(config)?;
    let given = Path::new(name);
    let plain = given.components().all(|part| matches!(part, Component::Normal(_)));
    let Some(file) = given.file_name().map(|file| file.to_string_lossy()).filter(|_| plain && !name.ends_with('/'))
    else {
        return Err(format!(
            "{name:?} is no file inside the record folder; name it without \"..\" and without a leading \"/\", such as \
             \"evening.trace.jsonl.zst\""
        ));
    };
    if !ENDINGS.iter().any(|ending| file.len() > ending.len() && file.ends_with(ending)) || file.starts_with('.') {
        return Err(format!("{name:?} is no name of a trace; write one that ends in .jsonl or .jsonl.zst"));
    }
    let path = folder.join(given);
    let outside =
        || format!("{name:?} leads out of the record folder, or into a folder that is not there; name a file in it");
    if given.components().count() > 1 {
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let parent = path.parent().and_then(real);
        if !parent.zip(real(folder)).is_some_and(|(parent, folder)| parent.starts_with(folder)) {
            return Err(outside());
        }
    }
    match std::fs::symlink_metadata(&path) {
        Ok(about) if !about.is_file() => {
            Err(format!("{name:?} is there and is no plain file; name another one, or remove it"))
        }
        Err(error) if matches!(error.kind(), ErrorKind::InvalidFilename | ErrorKind::InvalidInput) => {
            Err(format!("{given:?} is no name that the disk takes ({error}); write a shorter, plainer one"))
        }
        Ok(_) | Err(_) => Ok(path),
    }
}

fn folder(config: &RecordConfig) -> Result<&Path, String> {
    config.folder.as_deref().ok_or_else(|| {
        "there is no record folder; set record.folder, or record.path, in the configuration (it is reloaded)".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_traces_inside_the_folder_can_be_named() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("traces");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(home.path().join("x.jsonl"), "").unwrap();
        std::os::unix::fs::symlink(home.path().join("x.jsonl"), folder.join("link.jsonl")).unwrap();
        std::os::unix::fs::symlink(home.path(), folder.join("out")).unwrap();
        let config = RecordConfig { folder: Some(folder.clone()), ..RecordConfig::default() };
        let ask = |name: &str| asked_for(&config, Some(name), 0);
        assert_eq!(ask("a.trace.jsonl").unwrap(), folder.join("a.trace.jsonl"));
        assert_eq!(ask("sub/a.jsonl.zst").unwrap(), folder.join("sub/a.jsonl.zst"));
        let absolute = folder.join("a.jsonl").display().to_string();
        for name in ["../x.jsonl", "sub/../../x.jsonl", &absolute, "", ".", "/", "a.jsonl/"] {
            assert!(
                ask(name).unwrap_err().contains("is no file inside the record folder"),
                "{name:?}: {:?}",
                ask(name)
            );
        }
        for name in ["policy.lua", ".jsonl", ".x.jsonl", "a.jsonl.gz"] {
            assert!(ask(name).unwrap_err().contains("is no name of a trace"), "{name:?}: {:?}", ask(name));
        }
        for name in ["out/x.jsonl", "missing/x.jsonl"] {
            assert!(ask(name).unwrap_err().contains("leads out of the record folder"), "{name:?}: {:?}", ask(name));
        }
        assert!(ask("link.jsonl").unwrap_err().contains("is no plain file"));
        for name in [format!("{}.jsonl", "x".repeat(300)), "x\0.jsonl".into()] {
            assert!(ask(&name).unwrap_err().contains("is no name that the disk takes"), "{name:?}: {:?}", ask(&name));
        }
    }

    #[test]
    fn without_a_name_it_is_the_configured_file_or_one_of_the_moment() {
        let config = RecordConfig::default();
        assert!(asked_for(&config, None, 0).unwrap_err().contains("set record.folder"));
        assert!(asked_for(&config, Some("a.jsonl"), 0).unwrap_err().contains("set record.folder"));
        let config = RecordConfig { folder: Some("t".into()), ..config };
        assert_eq!(asked_for(&config, None, 0).unwrap(), Path::new("t/usher-19700101T000000Z.trace.jsonl.zst"));
        let config = RecordConfig { path: Some("t/live.jsonl".into()), ..config };
        assert_eq!(asked_for(&config, None, 0).unwrap(), Path::new("t/live.jsonl"));
    }
}

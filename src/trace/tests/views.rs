//! Views that are written whole now and then, so that a damaged one costs a part of a file only.

use super::*;

/// A minute of a large cluster in which everything that is measured changes all the time: about 8 MiB. Monoliths come
/// and go in it. With every decision the rows that it saw.
fn minute() -> (Vec<u8>, Vec<Vec<MonolithRow>>) {
    let mut view = View::of((0..40).map(|n| row(&format!("m{n:02}"), n)));
    let (mut encoder, mut bytes, mut rows) = (Encoder::new(None), Vec::new(), Vec::new());
    encoder.header(&header(), &mut bytes);
    for n in 0..600_u32 {
        let ids: Vec<MonolithId> = view.rows().iter().map(|row| row.id.clone()).collect();
        for id in &ids {
            view.update(id, |row| row.rtt_ms = f64::from(n) + 0.5);
        }
        match n % 50 {
            7 => drop(view.remove(&ids[usize::try_from(n).unwrap() % ids.len()])),
            9 => view.insert(row(&format!("n{n}"), n)),
            _ => {}
        }
        for count in 0..3 {
            view.update(&ids[1], |row| row.pending = count);
            rows.push(view.rows().to_vec());
            encoder.decision(
                u64::from(n) * 100_000 + u64::from(count),
                decided(&n.to_string(), &view, "m01"),
                &mut bytes,
            );
        }
    }
    (bytes, rows)
}

fn is_whole(line: &str) -> bool {
    line.contains("\"view\":1,\"monoliths\"")
}

#[test]
fn a_view_is_written_whole_every_ten_seconds_and_mebibyte() {
    let (bytes, rows) = minute();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let moments: Vec<u64> = (text.lines().filter(|line| is_whole(line)))
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["t"].as_u64().unwrap())
        .collect();
    assert!(
        (4..=6).contains(&moments.len()) && moments.windows(2).all(|two| two[1] - two[0] >= 10_000_000),
        "{moments:?}"
    );
    let read: Vec<_> = decisions(&mut reader(bytes, OnDamage::Stop)).into_iter().map(|(_, rows, _)| rows).collect();
    assert!(read == rows, "every call comes back as it was");
    // A quiet balancer does not repeat itself.
    let view = View::of([row("a", 1)]);
    let (mut encoder, mut quiet) = (Encoder::new(None), Vec::new());
    encoder.header(&header(), &mut quiet);
    (0..100).for_each(|n| encoder.decision(n * 60_000_000, decided("r", &view, "a"), &mut quiet));
    assert_eq!(String::from_utf8(quiet).unwrap().lines().filter(|line| is_whole(line)).count(), 1);
}

#[test]
fn a_damaged_view_costs_the_decisions_up_to_the_next_whole_one() {
    let (bytes, rows) = minute();
    let text = String::from_utf8(bytes).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let views: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains("\"monoliths\":")).collect();
    let whole: Vec<usize> = views.iter().copied().filter(|at| is_whole(lines[*at])).collect();
    let numbers = |from: usize, to: usize| lines[from..to].iter().filter(|line| line.contains("\"decision\":")).count();
    // One in the middle of a stretch, one that tells that a Monolith went, and one that is whole.
    let gone = *views.iter().find(|at| lines[**at].contains("\"gone\":[\"")).unwrap();
    for (damaged, until) in [(whole[1] + 9, whole[2]), (gone, whole[1]), (whole[2], whole[3])] {
        let damaged = *views.iter().find(|at| **at >= damaged).unwrap();
        let mut broken: Vec<&str> = lines.clone();
        broken[damaged] = "{\"t\":1,\"view\":";
        let mut reader = reader((broken.join("\n") + "\n").into_bytes(), OnDamage::Skip);
        let read: Vec<_> = decisions(&mut reader).into_iter().map(|(_, rows, _)| rows).collect();
        let (before, lost) = (numbers(0, damaged), numbers(damaged, until));
        assert!(lost > 100 && read.len() == rows.len() - lost, "{} of {}, {lost} lost", read.len(), rows.len());
        assert!(read[..before] == rows[..before] && read[before..] == rows[before + lost..], "no row is another's");
    }
}

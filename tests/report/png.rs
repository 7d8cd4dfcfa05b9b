//! Reads just enough of a picture to tell whether anything is on it.

use std::collections::BTreeSet;
use std::io::Read;

/// How many different colours a picture has: eight bits a channel, not interlaced, as browsers write them.
pub(crate) fn colours(png: &[u8]) -> usize {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
    let (width, height) = (number(16), number(20));
    let (depth, kind, interlaced) = (png[24], png[25], png[28]);
    let channels = match kind {
        2 => 3,
        6 => 4,
        _ => panic!("a picture of kind {kind}"),
    };
    assert_eq!((depth, interlaced), (8, 0));
    let mut packed = Vec::new();
    let mut at = 8;
    while at + 12 <= png.len() {
        let length = number(at);
        if &png[at + 4..at + 8] == b"IDAT" {
            packed.extend_from_slice(&png[at + 8..at + 8 + length]);
        }
        at += length + 12;
    }
    let mut raw = Vec::new();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut raw).unwrap();
    let stride = width * channels;
    let mut above = vec![0u8; stride];
    let mut found = BTreeSet::new();
    for line in raw.chunks_exact(stride + 1).take(height) {
        let mut pixels = line[1..].to_vec();
        for place in 0..stride {
            let left = if place < channels { 0 } else { pixels[place - channels] };
            let corner = if place < channels { 0 } else { above[place - channels] };
            let guess = match line[0] {
                0 => 0,
                1 => left,
                2 => above[place],
                3 => ((u16::from(left) + u16::from(above[place])) / 2) as u8,
                4 => paeth(left, above[place], corner),
                filter => panic!("filter {filter}"),
            };
            pixels[place] = pixels[place].wrapping_add(guess);
        }
        found.extend(pixels.chunks_exact(channels).map(<[u8]>::to_vec));
        above = pixels;
    }
    found.len()
}

/// Whichever of the three is nearest to left + above - corner, as the format says.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let guess = i16::from(left) + i16::from(above) - i16::from(corner);
    let far = |value: u8| (guess - i16::from(value)).abs();
    if far(left) <= far(above) && far(left) <= far(corner) {
        left
    } else if far(above) <= far(corner) {
        above
    } else {
        corner
    }
}

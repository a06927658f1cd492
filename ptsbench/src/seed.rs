//! Random streams named by purpose, so that adding one draw somewhere never shifts another.
//!
//! A stream is SplitMix64 started from the seed and the purpose's FNV-1a hash: integers only, equal on every machine.

/// The seed of a run; every random draw comes from one of its [streams](Seed::stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The stream of draws for one purpose, e.g. `"calibration"`.
    pub fn stream(self, purpose: &str) -> Stream {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Stream {
            state: mix(hash ^ mix(self.0)),
        }
    }
}

/// A stream of random integers.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A uniform integer in `0..n`, without bias (Lemire's multiply-and-reject).
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no value to return");
        let reject = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.bits()) * u128::from(n);
            if wide as u64 >= reject {
                return (wide >> 64) as u64;
            }
        }
    }

    /// A uniform integer in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low) as u64 + 1) as i64
    }

    /// A uniform `f32` in `[0, 1)`, a multiple of 2^-24.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// A draw from the normal distribution of mean 0 and variance 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
        // The first is above 0, so that it has a logarithm.
        let (length, turn) = (1.0 - uniform(self.bits()), uniform(self.bits()));
        ((-2.0 * length.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()) as f32
    }

    /// Puts the items into a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_named_and_repeat() {
        let draw = |seed, purpose: &str| Seed(seed).stream(purpose).bits();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn normal_draws_have_the_moments_of_the_normal_distribution() {
        let mut stream = Seed(0).stream("test");
        let draws: Vec<f64> = (0..100_000).map(|_| stream.normal().into()).collect();
        let moment = |power| draws.iter().map(|x| x.powi(power)).sum::<f64>() / draws.len() as f64;
        for (power, wanted, near) in [
            (1, 0.0, 0.01),
            (2, 1.0, 0.02),
            (3, 0.0, 0.05),
            (4, 3.0, 0.1),
        ] {
            let found = moment(power);
            assert!((found - wanted).abs() < near, "moment {power} is {found}");
        }
    }

    #[test]
    fn below_reaches_every_value_about_equally() {
        let mut stream = Seed(0).stream("test");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&c| (9_500..10_500).contains(&c)),
            "{counts:?}"
        );
    }
}

//! Floating point as compilers make it for x86-64 without extensions: SSE2, scalar and packed.

/// Five bodies that attract one another: scalar double precision with a square root and divisions.
pub fn nbody() -> u64 {
    let mut bodies: [[f64; 7]; 5] = std::array::from_fn(|n| {
        let n = n as f64;
        [n * 1.5 - 2.0, 0.7 * n * n, 3.0 - n, 0.01 * n, 0.02, -0.01 * n, 1.0 + n]
    });
    for _ in 0..400_000 {
        for i in 0..5 {
            for j in i + 1..5 {
                let d: [f64; 3] = std::array::from_fn(|k| bodies[i][k] - bodies[j][k]);
                let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.01;
                let pull = 1e-4 / (square * square.sqrt());
                let (mi, mj) = (bodies[i][6], bodies[j][6]);
                for k in 0..3 {
                    bodies[i][k + 3] -= d[k] * mj * pull;
                    bodies[j][k + 3] += d[k] * mi * pull;
                }
            }
        }
        for body in &mut bodies {
            for k in 0..3 {
                body[k] += 1e-3 * body[k + 3];
            }
        }
    }
    bodies.iter().flatten().sum::<f64>().to_bits()
}

/// The Mandelbrot set on 256 × 256 points: scalar double precision, compared and branched on.
pub fn mandelbrot() -> u64 {
    let mut steps = 0u64;
    for row in 0..256 {
        for column in 0..256 {
            let (cx, cy) = (f64::from(column) / 100.0 - 2.0, f64::from(row) / 100.0 - 1.28);
            let (mut x, mut y, mut n) = (0.0, 0.0, 0);
            while x * x + y * y < 4.0 && n < 400 {
                (x, y) = (x * x - y * y + cx, 2.0 * x * y + cy);
                n += 1;
            }
            steps += n;
        }
    }
    steps
}

/// Products of 128 × 128 matrices in single precision, row by row, which compilers do four numbers at a time.
pub fn matrix() -> u64 {
    const N: usize = 128;
    let a: Vec<[f32; N]> = (0..N).map(|r| std::array::from_fn(|c| ((r * c) % 17) as f32 * 0.25)).collect();
    let mut b: Vec<[f32; N]> = (0..N).map(|r| std::array::from_fn(|c| ((r + c) % 13) as f32 * 0.5)).collect();
    for _ in 0..12 {
        let mut product = vec![[0f32; N]; N];
        for (row, out) in a.iter().zip(&mut product) {
            for (factor, from) in row.iter().zip(&b) {
                for (to, value) in out.iter_mut().zip(from) {
                    *to += factor * value;
                }
            }
        }
        for value in product.iter_mut().flatten() {
            *value *= 1e-2;
        }
        b = product;
    }
    b.iter().flatten().fold(0u64, |sum, value| sum.wrapping_mul(31).wrapping_add(u64::from(value.to_bits())))
}

//! Signed distances in millimetres, negative inside, of the solids that organs are made of.

/// A point or an extent in millimetres along the RAS+ axes: right, anterior, superior.
pub type Point = [f32; 3];

pub fn sub(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub fn norm(a: Point) -> f32 {
    dot(a, a).sqrt()
}

/// Length of `p` measured in `radii`: 1 on the surface of the ellipsoid about the origin.
pub fn scaled_norm(p: Point, radii: Point) -> f32 {
    norm([p[0] / radii[0], p[1] / radii[1], p[2] / radii[2]])
}

/// Ellipsoid; first-order distance, exact on the surface.
pub fn ellipsoid(p: Point, centre: Point, radii: Point) -> f32 {
    let p = sub(p, centre);
    let level = scaled_norm(p, radii);
    let slope = norm([p[0] / radii[0].powi(2), p[1] / radii[1].powi(2), p[2] / radii[2].powi(2)]);
    if slope < 1e-6 { -radii[0].min(radii[1]).min(radii[2]) } else { level * (level - 1.0) / slope }
}

/// Ellipse in the axial plane, endless along the third axis.
pub fn column(p: Point, centre: [f32; 2], radii: [f32; 2]) -> f32 {
    ellipsoid([p[0], p[1], 0.0], [centre[0], centre[1], 0.0], [radii[0], radii[1], 1.0])
}

/// Box with half extents `half`.
pub fn cuboid(p: Point, centre: Point, half: Point) -> f32 {
    let p = sub(p, centre);
    let q = [p[0].abs() - half[0], p[1].abs() - half[1], p[2].abs() - half[2]];
    norm(q.map(|v| v.max(0.0))) + q[0].max(q[1]).max(q[2]).min(0.0)
}

/// Round tube through knots `(centre, radius)`, the radius linear in between.
pub fn tube(p: Point, knots: &[(Point, f32)]) -> f32 {
    let mut best = f32::INFINITY;
    for pair in knots.windows(2) {
        let ((a, ra), (b, rb)) = (pair[0], pair[1]);
        let (ab, ap) = (sub(b, a), sub(p, a));
        let t = (dot(ap, ab) / dot(ab, ab)).clamp(0.0, 1.0);
        let nearest = [ap[0] - t * ab[0], ap[1] - t * ab[1], ap[2] - t * ab[2]];
        best = best.min(norm(nearest) - (ra + t * (rb - ra)));
    }
    best
}

/// Union whose crease is rounded over about `k` millimetres.
pub fn smooth_union(a: f32, b: f32, k: f32) -> f32 {
    let h = (k - (a - b).abs()).max(0.0) / k;
    a.min(b) - h * h * k * 0.25
}

/// 0 below `from`, 1 above `to`, smooth between.
pub fn smoothstep(from: f32, to: f32, v: f32) -> f32 {
    let t = ((v - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

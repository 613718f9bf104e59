//! What programs do in the guest: rows of `cargo xtask bench guest`, their script and what it works on.

use std::fmt::Write as _;

/// One workload.
#[derive(Debug)]
pub struct Workload {
    /// Its row.
    pub name: &'static str,
    /// What ours ÷ QEMU's may be at most.
    pub limit: f64,
    /// Shell commands that bring files into memory first, so that no disk is timed.
    warm: &'static str,
    /// What is timed.
    timed: &'static str,
}

/// Debian packages that the guest has.
pub const PACKAGES: &str = "gzip,coreutils,findutils,tar,python3,gcc,libc6-dev,containerd";

/// All of them. `work` is the folder with the files of [`FILES`].
pub const ALL: &[Workload] = &[
    Workload { name: "gzip", limit: 0.6, warm: "gzip --version", timed: "gzip -9 -c text | wc -c" },
    Workload {
        name: "sha256",
        limit: 0.6,
        warm: "sha256sum --version; cat text text text",
        timed: "cat text text text text | sha256sum",
    },
    Workload { name: "python", limit: 0.6, warm: "python3 -c 'import math'", timed: "python3 crunch.py" },
    Workload {
        name: "gcc",
        limit: 0.6,
        warm: "cat big.c $(gcc -print-prog-name=cc1) $(gcc -print-prog-name=as); gcc --version",
        timed: "gcc -O2 -c big.c -o big.o && wc -c <big.o",
    },
    Workload { name: "go", limit: 0.6, warm: "cat /usr/bin/containerd", timed: "containerd --version" },
    Workload {
        name: "forks",
        limit: 0.8,
        warm: "/bin/true",
        timed: "n=0; while [ $n -lt 1000 ]; do /bin/true; n=$((n+1)); done; echo $n",
    },
    Workload {
        name: "find",
        limit: 0.8,
        warm: "find tree",
        timed: "find tree -type f -name '*7' -size -2 | wc -l",
    },
    Workload { name: "tar", limit: 0.8, warm: "tar --version", timed: "tar cf - tree | wc -c" },
];

/// The names, in order.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|workload| workload.name).collect()
}

/// The script for `rows`. In a guest its files are on the disk that it is on itself, behind it; otherwise they are in
/// `/tmp` already.
pub fn script(rows: &[&Workload]) -> String {
    let mut script = String::from(
        "cd /tmp || exit 1\n\
         if [ -b /dev/vdb ]; then dd if=/dev/vdb bs=1M skip=1 2>/dev/null | tar xf -; fi\n\
         up() { read seconds rest </proc/uptime; echo \"@$1 $2 $seconds\"; }\n",
    );
    if rows.iter().any(|row| matches!(row.name, "find" | "tar")) {
        script.push_str("python3 tree.py\n");
    }
    for row in rows {
        // A failure shows in place of the end's mark.
        let _ = write!(
            script,
            "{{ {}; }} >/dev/null 2>&1\nup begin {name}\n{{ {}; }} >out 2>&1 || {{ echo \"failed: {name}\"; cat out; exit 1; }}\n\
             up end {name}\necho \"@result {name} $(tail -n 1 out | cut -c 1-60)\"\n",
            row.warm,
            row.timed,
            name = row.name,
        );
    }
    script.push_str("echo @done\nexit 0\n");
    script
}

/// The files that the workloads want.
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("text", text(20_000_000)),
        ("big.c", c_source(2_000).into_bytes()),
        ("crunch.py", CRUNCH.as_bytes().to_vec()),
        ("tree.py", TREE.as_bytes().to_vec()),
    ]
}

/// Floats, integers, lists, dictionaries and strings.
const CRUNCH: &str = "\
import math

def nbody(steps):
    bodies = [[math.cos(i), math.sin(i), i * 0.1, 0.01 * i, -0.02 * i, 0.0, 1.0 / (i + 1)] for i in range(5)]
    for _ in range(steps):
        for i, a in enumerate(bodies):
            for b in bodies[i + 1:]:
                dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
                d = 0.001 / (dx * dx + dy * dy + dz * dz + 0.01) ** 1.5
                a[3] -= dx * b[6] * d; a[4] -= dy * b[6] * d; a[5] -= dz * b[6] * d
                b[3] += dx * a[6] * d; b[4] += dy * a[6] * d; b[5] += dz * a[6] * d
        for a in bodies:
            a[0] += 0.001 * a[3]; a[1] += 0.001 * a[4]; a[2] += 0.001 * a[5]
    return sum(a[0] * a[4] for a in bodies)

def sieve(n):
    marks = bytearray([1]) * n
    for i in range(2, int(n ** 0.5) + 1):
        if marks[i]:
            marks[i * i::i] = bytes(len(range(i * i, n, i)))
    return sum(marks) - 2

def words(n):
    counts = {}
    for i in range(n):
        key = 'w%d' % (i * i % 1009)
        counts[key] = counts.get(key, 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[0]

def collatz(n):
    best = 0
    for i in range(1, n):
        length = 0
        while i != 1:
            i = i // 2 if i % 2 == 0 else 3 * i + 1
            length += 1
        best = max(best, length)
    return best

print('%.6f' % nbody(6000), sieve(600000), words(120000), collatz(12000), pow(3, 20000) % 1000003)
";

/// 10,000 files in 100 folders.
const TREE: &str = "\
import os
for folder in range(100):
    path = 'tree/%03d' % folder
    os.makedirs(path, exist_ok=True)
    for n in range(100):
        with open('%s/file%03d' % (path, n), 'w') as file:
            file.write('%d\\n' % (folder * n) * (n % 40 + 1))
";

/// Numbers that are the same everywhere. Spec: Knuth, MMIX.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Lines of made-up words, the frequent ones short and very frequent, as in a language.
fn text(bytes: usize) -> Vec<u8> {
    let mut random = Random(1);
    let vocabulary: Vec<Vec<u8>> = (1..=20_000u64)
        .map(|rank| {
            let length = 2 + random.below(3 + u64::from(rank.ilog2())) as usize;
            (0..length)
                .map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[(random.below(26) * random.below(26) / 26) as usize])
                .collect()
        })
        .collect();
    let mut text = Vec::with_capacity(bytes + 100);
    let mut column = 0;
    while text.len() < bytes {
        // Log-uniform ranks: about Zipf's law.
        let top = 1 << random.below(15);
        let word = &vocabulary[random.below(top).min(19_999) as usize];
        text.extend(word);
        column += word.len() + 1;
        text.push(if column > 70 { b'\n' } else { b' ' });
        if column > 70 {
            column = 0;
        }
    }
    text.truncate(bytes);
    text
}

/// A C file of about `lines` lines with what such files have: structures, tables, parsers, loops, switches.
fn c_source(lines: usize) -> String {
    let mut random = Random(2);
    let mut source = String::from(
        "#include <ctype.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n",
    );
    let mut n = 0;
    while source.lines().count() < lines {
        let part = [list, hash_table, parser, matrix, state_machine][random.below(5) as usize];
        source.push_str(&part(n, &mut random));
        n += 1;
    }
    source
}

fn list(n: usize, random: &mut Random) -> String {
    let weight = random.below(1000);
    format!(
        "struct node{n} {{\n\tstruct node{n} *next;\n\tuint32_t key;\n\tint64_t weight;\n\tchar name[{name}];\n}};\n\n\
static struct node{n} *insert{n}(struct node{n} *head, uint32_t key, const char *name)\n{{\n\tstruct node{n} **at = &head;\n\
\twhile (*at && (*at)->key < key)\n\t\tat = &(*at)->next;\n\tif (*at && (*at)->key == key) {{\n\t\t(*at)->weight += {weight};\n\
\t\treturn head;\n\t}}\n\tstruct node{n} *fresh = calloc(1, sizeof *fresh);\n\tif (!fresh)\n\t\tabort();\n\tfresh->key = key;\n\
\tsnprintf(fresh->name, sizeof fresh->name, \"%s-%u\", name, key);\n\tfresh->next = *at;\n\t*at = fresh;\n\treturn head;\n}}\n\n\
int64_t total{n}(const struct node{n} *head)\n{{\n\tint64_t sum = 0;\n\tfor (; head; head = head->next)\n\
\t\tsum += head->weight * (head->key % {modulus} + 1) - (int64_t)strlen(head->name);\n\treturn sum;\n}}\n\n\
struct node{n} *fill{n}(const char *name)\n{{\n\tstruct node{n} *head = NULL;\n\tfor (uint32_t i = 0; i < 64; i++)\n\
\t\thead = insert{n}(head, i * 2654435761u >> 20, name);\n\treturn head;\n}}\n\n",
        name = 16 + random.below(48),
        modulus = 3 + random.below(20),
    )
}

fn hash_table(n: usize, random: &mut Random) -> String {
    format!(
        "#define SLOTS{n} {slots}u\nstruct entry{n} {{ uint64_t hash; double value; const char *key; }};\n\
struct table{n} {{ struct entry{n} entries[SLOTS{n}]; size_t used; }};\n\n\
static uint64_t hash{n}(const char *key)\n{{\n\tuint64_t h = 0x{seed:x}ull;\n\tfor (; *key; key++) {{\n\t\th ^= (unsigned char)*key;\n\
\t\th *= 0x100000001b3ull;\n\t\th ^= h >> {shift};\n\t}}\n\treturn h ? h : 1;\n}}\n\n\
double *slot{n}(struct table{n} *table, const char *key)\n{{\n\tuint64_t h = hash{n}(key);\n\tsize_t i = h % SLOTS{n};\n\
\tfor (size_t probes = 0; probes < SLOTS{n}; probes++, i = (i + 1) % SLOTS{n}) {{\n\t\tstruct entry{n} *e = &table->entries[i];\n\
\t\tif (!e->hash) {{\n\t\t\te->hash = h;\n\t\t\te->key = key;\n\t\t\ttable->used++;\n\t\t\treturn &e->value;\n\t\t}}\n\
\t\tif (e->hash == h && !strcmp(e->key, key))\n\t\t\treturn &e->value;\n\t}}\n\treturn NULL;\n}}\n\n\
double mean{n}(const struct table{n} *table)\n{{\n\tdouble sum = 0;\n\tfor (size_t i = 0; i < SLOTS{n}; i++)\n\
\t\tif (table->entries[i].hash)\n\t\t\tsum += table->entries[i].value * {factor}.5;\n\treturn table->used ? sum / table->used : 0;\n}}\n\n",
        slots = 61 + random.below(400),
        seed = random.below(1 << 30) | 1,
        shift = 11 + random.below(30),
        factor = random.below(9),
    )
}

fn parser(n: usize, random: &mut Random) -> String {
    format!(
        "static long expr{n}(const char **s);\n\nstatic long atom{n}(const char **s)\n{{\n\twhile (isspace((unsigned char)**s))\n\t\t++*s;\n\
\tif (**s == '(') {{\n\t\t++*s;\n\t\tlong value = expr{n}(s);\n\t\tif (**s == ')')\n\t\t\t++*s;\n\t\treturn value;\n\t}}\n\
\tlong value = 0;\n\twhile (isdigit((unsigned char)**s))\n\t\tvalue = value * 10 + (*(*s)++ - '0');\n\treturn value;\n}}\n\n\
static long term{n}(const char **s)\n{{\n\tlong value = atom{n}(s);\n\tfor (;;) {{\n\t\tlong right;\n\t\tswitch (**s) {{\n\
\t\tcase '*': ++*s; value *= atom{n}(s); break;\n\t\tcase '/': ++*s; right = atom{n}(s); value = right ? value / right : {zero}; break;\n\
\t\tcase '%': ++*s; right = atom{n}(s); value = right ? value % right : 0; break;\n\t\tdefault: return value;\n\t\t}}\n\t}}\n}}\n\n\
static long expr{n}(const char **s)\n{{\n\tlong value = term{n}(s);\n\twhile (**s == '+' || **s == '-') {{\n\t\tchar op = *(*s)++;\n\
\t\tlong right = term{n}(s);\n\t\tvalue = op == '+' ? value + right : value - right;\n\t}}\n\treturn value;\n}}\n\n\
long evaluate{n}(const char *text)\n{{\n\tlong value = expr{n}(&text);\n\treturn *text ? -1 - {zero} : value;\n}}\n\n",
        zero = random.below(100),
    )
}

fn matrix(n: usize, random: &mut Random) -> String {
    format!(
        "#define SIZE{n} {size}\n\nvoid multiply{n}(double out[SIZE{n}][SIZE{n}], const double a[SIZE{n}][SIZE{n}], const double b[SIZE{n}][SIZE{n}])\n{{\n\
\tfor (int i = 0; i < SIZE{n}; i++)\n\t\tfor (int j = 0; j < SIZE{n}; j++) {{\n\t\t\tdouble sum = 0;\n\
\t\t\tfor (int k = 0; k < SIZE{n}; k++)\n\t\t\t\tsum += a[i][k] * b[k][j];\n\t\t\tout[i][j] = sum;\n\t\t}}\n}}\n\n\
int solve{n}(double m[SIZE{n}][SIZE{n} + 1])\n{{\n\tfor (int c = 0; c < SIZE{n}; c++) {{\n\t\tint pivot = c;\n\
\t\tfor (int r = c + 1; r < SIZE{n}; r++)\n\t\t\tif (m[r][c] * m[r][c] > m[pivot][c] * m[pivot][c])\n\t\t\t\tpivot = r;\n\
\t\tif (m[pivot][c] == 0.{zero})\n\t\t\treturn -1;\n\t\tfor (int k = 0; k <= SIZE{n}; k++) {{\n\t\t\tdouble t = m[c][k];\n\
\t\t\tm[c][k] = m[pivot][k];\n\t\t\tm[pivot][k] = t;\n\t\t}}\n\t\tfor (int r = 0; r < SIZE{n}; r++) {{\n\
\t\t\tif (r == c)\n\t\t\t\tcontinue;\n\t\t\tdouble f = m[r][c] / m[c][c];\n\t\t\tfor (int k = c; k <= SIZE{n}; k++)\n\
\t\t\t\tm[r][k] -= f * m[c][k];\n\t\t}}\n\t}}\n\treturn 0;\n}}\n\n",
        size = 4 + random.below(28),
        zero = random.below(10),
    )
}

fn state_machine(n: usize, random: &mut Random) -> String {
    let mut cases = String::new();
    for state in 0..8 {
        let (low, high) = (b'a' + random.below(13) as u8, b'n' + random.below(13) as u8);
        let _ = write!(
            cases,
            "\t\tcase {state}:\n\t\t\tif (c >= '{}' && c <= '{}')\n\t\t\t\tstate = {};\n\t\t\telse if (c == '{}')\n\t\t\t\tcounts[{state}] += c ^ {};\n\
\t\t\telse\n\t\t\t\tstate = {};\n\t\t\tbreak;\n",
            low as char,
            high as char,
            random.below(8),
            (b'A' + random.below(26) as u8) as char,
            random.below(255),
            random.below(8),
        );
    }
    format!(
        "uint32_t scan{n}(const char *text, size_t length, uint32_t counts[8])\n{{\n\tint state = 0;\n\tuint32_t sum = {};\n\
\tfor (size_t i = 0; i < length; i++) {{\n\t\tint c = text[i];\n\t\tswitch (state) {{\n{cases}\t\t}}\n\t\tsum = (sum << 5 | sum >> 27) + (uint32_t)(state * c);\n\t}}\n\treturn sum;\n}}\n\n",
        random.below(1 << 20),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_of_the_size_they_are_said_to_be() {
        let source = c_source(2_000);
        assert!((2_000..2_100).contains(&source.lines().count()), "{}", source.lines().count());
        let text = text(100_000);
        assert_eq!(text.len(), 100_000);
        assert_eq!(text, super::text(100_000));
    }

    #[test]
    fn the_script_is_one_that_a_shell_can_read() {
        let rows: Vec<&Workload> = ALL.iter().collect();
        let status = std::process::Command::new("sh").args(["-n", "-c", &script(&rows)]).status().unwrap();
        assert!(status.success());
    }
}

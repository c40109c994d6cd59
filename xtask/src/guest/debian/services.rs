//! Services that a guest starts, and what their packages' installation scripts would have prepared.

use crate::guest::Probe;

/// A service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The package that is asked for by name, and how one finds out that it serves.
    pub probe: Probe,
    /// Users that it needs beyond Debian's usual ones: name, number, home.
    pub users: &'static [(&'static str, u32, &'static str)],
    /// Lines of shell that prepare it and become it; they run as root, and again when it has ended.
    pub script: &'static str,
}

/// Beginnings of the names of packages that a package depends on and does without.
const LUXURIES: [(&str, &[&str]); 2] = [
    // Queries are not compiled: the compiler is larger than all the rest.
    ("postgresql", &["libllvm", "libz3"]),
    // There is no graphics card for its drivers, which have that compiler, too.
    ("stress-ng", &["mesa-libgallium", "libllvm", "libz3"]),
];

/// All that are known.
const SERVICES: [Service; 4] = [
    Service {
        probe: Probe { name: "redis-server", port: 6379, question: b"PING\r\n", answer: b"+PONG" },
        users: &[("redis", 900, "/var/lib/redis")],
        // On a disk each write is there before it is answered.
        script: "[ ! -e /etc/pollux/data ] || keep='--appendonly yes --appendfsync always'\n\
                 exec busybox su -s /bin/sh redis -c \"exec redis-server --bind 0.0.0.0 --protected-mode no --save '' \\\
                 --dir /var/lib/redis $keep\"\n",
    },
    Service {
        probe: Probe { name: "nginx-light", port: 80, question: b"HEAD / HTTP/1.0\r\n\r\n", answer: b"HTTP/1.1 200" },
        users: &[],
        script: "mkdir -p /var/log/nginx /var/lib/nginx /var/www/html\n\
                 [ -e /var/www/html/index.html ] || cp /usr/share/nginx/html/index.html /var/www/html/\n\
                 ln -sf /etc/nginx/sites-available/default /etc/nginx/sites-enabled/default\n\
                 exec nginx -g 'daemon off;'\n",
    },
    Service {
        probe: Probe { name: "openssh-server", port: 22, question: b"", answer: b"SSH-2.0-" },
        users: &[("sshd", 901, "/run/sshd")],
        // For a rig on this desk: unless a key was given, root has no password. A key of a kind that is found quickly.
        script: "key=/etc/ssh/ssh_host_ed25519_key empty=yes\n\
                 mkdir -p /run/sshd\n\
                 [ -e $key ] || ssh-keygen -q -t ed25519 -N '' -f $key\n\
                 [ -e /root/.ssh/authorized_keys ] && empty=no\n\
                 exec /usr/sbin/sshd -D -e -f /usr/share/openssh/sshd_config -h $key \\\
                 -o UsePAM=no -o PermitRootLogin=yes -o PermitEmptyPasswords=$empty\n",
    },
    Service {
        // The start of a session. See: PostgreSQL, "Message Formats", StartupMessage and AuthenticationOk.
        probe: Probe {
            name: "postgresql",
            port: 5432,
            question: b"\x00\x00\x00\x17\x00\x03\x00\x00user\x00postgres\x00\x00",
            answer: b"R\x00\x00\x00\x08\x00\x00\x00\x00",
        },
        users: &[("postgres", 902, "/var/lib/postgresql")],
        script: "bin=$(echo /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/data\n\
                 [ -e /etc/pollux/data ] || sync=--no-sync\n\
                 mkdir -p /var/run/postgresql && chown postgres /var/run/postgresql\n\
                 if [ ! -e $data/PG_VERSION ]; then\n\
                 rm -rf $data.new\n\
                 busybox su -s /bin/sh postgres -c \"$bin/initdb -D $data.new --no-locale -E UTF8 -A trust $sync\"\n\
                 echo 'host all all 10.0.2.0/24 trust' >> $data.new/pg_hba.conf\n\
                 sync && mv $data.new $data\n\
                 fi\n\
                 exec busybox su -s /bin/sh postgres -c \"exec $bin/postgres -D $data -c jit=off -c listen_addresses='*'\"\n",
    },
];

/// Those among `packages`.
pub fn of(packages: &[String]) -> impl Iterator<Item = &'static Service> {
    SERVICES.iter().filter(|service| packages.iter().any(|name| name == service.probe.name))
}

/// What `package` can do without: beginnings of names of packages.
pub fn luxuries(package: &str) -> &'static [&'static str] {
    LUXURIES.iter().find(|(name, _)| *name == package).map_or(&[], |(_, prefixes)| prefixes)
}

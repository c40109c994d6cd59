//! Services that a guest starts, and what their packages' installation scripts would have prepared.

/// A service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The package that is asked for by name.
    pub package: &'static str,
    /// Its TCP port.
    pub port: u16,
    /// Whether it answers `PING` there as our own small guest does.
    pub answers: bool,
    /// Users that it needs beyond Debian's usual ones: name, number, home.
    pub users: &'static [(&'static str, u32, &'static str)],
    /// Lines of shell that prepare it and become it; they run as root, and again when it has ended.
    pub script: &'static str,
}

/// All that are known.
const SERVICES: [Service; 4] = [
    Service {
        package: "redis-server",
        port: 6379,
        answers: true,
        users: &[("redis", 900, "/var/lib/redis")],
        script: "exec busybox su -s /bin/sh redis -c 'exec redis-server --bind 0.0.0.0 --protected-mode no --save \"\" \\\
                 --dir /var/lib/redis'\n",
    },
    Service {
        package: "nginx-light",
        port: 80,
        answers: false,
        users: &[],
        script: "mkdir -p /var/log/nginx /var/lib/nginx /var/www/html\n\
                 [ -e /var/www/html/index.html ] || cp /usr/share/nginx/html/index.html /var/www/html/\n\
                 ln -sf /etc/nginx/sites-available/default /etc/nginx/sites-enabled/default\n\
                 exec nginx -g 'daemon off;'\n",
    },
    Service {
        package: "openssh-server",
        port: 22,
        answers: false,
        users: &[("sshd", 901, "/run/sshd")],
        // For a rig on this desk: root has no password.
        script: "mkdir -p /run/sshd && ssh-keygen -A\n\
                 exec /usr/sbin/sshd -D -e -o UsePAM=no -o PermitRootLogin=yes -o PermitEmptyPasswords=yes\n",
    },
    Service {
        package: "postgresql",
        port: 5432,
        answers: false,
        users: &[("postgres", 902, "/var/lib/postgresql")],
        script: "bin=$(echo /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/data\n\
                 mkdir -p /var/run/postgresql && chown postgres /var/run/postgresql\n\
                 if [ ! -e $data/PG_VERSION ]; then\n\
                 busybox su -s /bin/sh postgres -c \"$bin/initdb -D $data --no-locale -E UTF8 -A trust\"\n\
                 echo 'host all all 10.0.2.0/24 trust' >> $data/pg_hba.conf\n\
                 fi\n\
                 exec busybox su -s /bin/sh postgres -c \"exec $bin/postgres -D $data -c listen_addresses='*'\"\n",
    },
];

/// Those among `packages`.
pub fn of(packages: &[String]) -> impl Iterator<Item = &'static Service> {
    SERVICES.iter().filter(|service| packages.iter().any(|name| name == service.package))
}

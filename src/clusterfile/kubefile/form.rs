//! How each instruction is written, for messages.

use super::Dialect;

/// The form of an instruction; empty for an unknown one.
pub(super) fn form(dialect: Dialect, keyword: &str) -> &'static str {
    match keyword {
        "FROM" => "FROM scratch, or FROM IMAGE",
        "ARG" => "ARG NAME[=DEFAULT]…",
        "ENV" => "ENV NAME=VALUE…",
        "LABEL" => "LABEL NAME=VALUE…",
        "COPY" => "COPY [--from=NAME] [--chmod=MODE] SOURCE… DESTINATION",
        "ADD" => "ADD [--checksum=sha256:…] [--unpack=true|false] [--chmod=MODE] SOURCE… DESTINATION",
        "RUN" => "RUN COMMAND, or RUN [\"program\", \"argument\", …]",
        "IMAGE" => {
            "IMAGE [--from=NAME] REFERENCE [FROM FOLDER | oci:FOLDER | oci-archive:FILE | docker-archive:FILE | \
             docker://REFERENCE]"
        }
        "CNI" => "CNI NAME SOURCE…",
        "CSI" => "CSI NAME SOURCE…",
        "APP" => "APP NAME SOURCE… [--values FILE]…",
        "APPENV" => "APPENV NAME KEY=VALUE…",
        "APPCMDS" => "APPCMDS NAME [\"command\", …]",
        "LAUNCH" => "LAUNCH [\"application\", …]",
        "CMDS" => "CMDS [\"command\", …]",
        "CMD" if dialect == Dialect::Kubefile => "CMD COMMAND",
        "CMD" => "CMD [\"program\", \"argument\", …], or CMD COMMAND",
        "KUBEVERSION" => "KUBEVERSION RANGE, as in KUBEVERSION >=1.30 <1.38",
        "WORKDIR" => "WORKDIR /PATH",
        "USER" => "USER NAME[:GROUP]",
        "EXPOSE" => "EXPOSE PORT[/tcp|/udp|/sctp]…",
        "ENTRYPOINT" => "ENTRYPOINT [\"program\", \"argument\", …], or ENTRYPOINT COMMAND",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_has_a_form_that_begins_with_its_name() {
        for dialect in [Dialect::Kubefile, Dialect::Containerfile] {
            for keyword in dialect.instructions() {
                let found = form(dialect, keyword);
                assert!(found.starts_with(&format!("{keyword} ")), "{keyword}: {found}");
            }
        }
    }
}

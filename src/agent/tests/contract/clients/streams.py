"""Commands and forwarded ports as the Python client opens them.

Arguments: kubeconfig, pod, container, port that answers HTTP."""

import sys

from kubernetes import client, config
from kubernetes.stream import portforward, stream

file, pod, container, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
config.load_kube_config(file)
api = client.CoreV1Api()


def run(command, write=None, binary=False):
    shell = stream(
        api.connect_get_namespaced_pod_exec, pod, "default", container=container, command=command,
        stdin=write is not None, stdout=True, stderr=True, tty=False, binary=binary, _preload_content=False)
    if write is not None:
        shell.write_stdin(write)
    shell.run_forever(timeout=30)
    out, err = shell.read_stdout(), shell.read_stderr()
    if binary:
        out, err = out.decode(), err.decode()
    print(f"exec {out.strip()} {err.strip()} {shell.returncode}")


run(["sh", "-c", "echo plain; echo bad >&2"])
# A string goes as a frame of text, bytes as a binary one.
run(["sh"], "echo text; exit 3\n")
run(["sh"], b"echo binary; exit 4\n", binary=True)

forwarded = portforward(api.connect_get_namespaced_pod_portforward, pod, "default", ports=str(port))
socket = forwarded.socket(port)
socket.setblocking(True)
socket.settimeout(30)
socket.sendall(b"GET /etc/passwd HTTP/1.0\r\n\r\n")
answer = b""
while part := socket.recv(1024):
    answer += part
print("forward", answer.splitlines()[0].decode(), answer.splitlines()[-1].decode(), forwarded.error(port))
log = api.read_namespaced_pod_log(pod, "default", container=container, _preload_content=False)
print("log", log.data.decode().strip())

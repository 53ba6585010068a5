// Commands and forwarded ports as the JavaScript client opens them.
//
// Arguments: folder of the client, kubeconfig, pod, container, port that answers HTTP.

import { once } from 'node:events';
import { PassThrough, Readable } from 'node:stream';

const [folder, file, pod, container, port] = process.argv.slice(2);
const k8s = await import(`${folder}/node_modules/@kubernetes/client-node/dist/index.js`);
const config = new k8s.KubeConfig();
config.loadFromFile(file);

function collected() {
  const stream = new PassThrough();
  stream.text = '';
  stream.on('data', (piece) => { stream.text += piece; });
  return stream;
}

async function run(command, stdin) {
  const [out, err] = [collected(), collected()];
  const status = await new Promise((resolve, reject) => {
    new k8s.Exec(config).exec('default', pod, container, command, out, err, stdin, false, resolve).catch(reject);
  });
  console.log('exec', out.text.trim(), err.text.trim(), status.status, status.details?.causes?.[0]?.message ?? '');
}

await run(['sh', '-c', 'echo plain; echo bad >&2'], null);
await run(['sh'], Readable.from([Buffer.from('echo written; exit 3\n')]));
// Its end ends the command.
await run(['cat'], Readable.from([Buffer.from('to the end')]));

const answer = collected();
// The client closes the socket when its input ends, so that it stays open until the answer is here.
const request = new PassThrough();
request.write('GET /etc/passwd HTTP/1.0\r\n\r\n');
const socket = await new k8s.PortForward(config).portForward('default', pod, [Number(port)], answer, null, request);
while (!answer.text.endsWith('\n') || !answer.text.includes('\r\n\r\n')) {
  await once(answer, 'data');
}
socket.close();
const lines = answer.text.split(/\r?\n/).filter((line) => line);
console.log('forward', lines[0], lines[lines.length - 1]);
process.exit(0);

/**
 * Commands of imagefs, one after the other, in one process that is not the test's: starting one for each of hundreds would take most of
 * the time of these tests. Each runs through `main`; that bin/imagefs does the same is for the tests of mounts and of the README.
 * Synchronous: a FIFO there, another one back.
 */
import { execFileSync, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { main } from '../../src/cli/main';

interface Order {
  directory: string;
  args: string[];
}

export interface Ran {
  code: number | null;
  stdout: string;
  stderr: string;
}

export class CommandServer {
  private readonly orders: number;
  private readonly answers: number;
  /** What its standard output and standard error go to. */
  private readonly output: number[];

  /** @param directory of its own; the process ends with this one */
  constructor(directory: string) {
    const [orders, answers] = ['orders', 'answers'].map((name) => path.join(directory, name));
    execFileSync('mkfifo', [orders, answers]);
    const { O_RDONLY, O_RDWR, O_CREAT, O_APPEND, O_NONBLOCK } = fs.constants;
    this.output = ['stdout', 'stderr'].map((name) =>
      fs.openSync(path.join(directory, name), O_RDWR | O_CREAT | O_APPEND),
    );
    // All ends are open before the process starts, and only it has its own afterwards: when it dies, we read the end of the file.
    const theirOrders = fs.openSync(orders, O_RDONLY | O_NONBLOCK); // Node makes it block there, as its standard input
    this.orders = fs.openSync(orders, 'w');
    const both = fs.openSync(answers, O_RDWR);
    this.answers = fs.openSync(answers, 'r');
    const theirAnswers = fs.openSync(answers, 'w');
    const stdio = [theirOrders, ...this.output, theirAnswers];
    spawn(process.execPath, [__filename], { stdio }).unref();
    for (const fd of [theirOrders, both, theirAnswers]) fs.closeSync(fd);
  }

  run(directory: string, args: string[]): Ran {
    for (const fd of this.output) fs.ftruncateSync(fd, 0);
    fs.writeSync(this.orders, `${JSON.stringify({ directory, args } satisfies Order)}\n`);
    const answer = readLine(this.answers);
    const [stdout, stderr] = this.output.map(contentOf);
    if (answer === undefined) throw new Error(`imagefs ${args.join(' ')} ended its process: ${stdout}${stderr}`);
    return { code: Number(answer), stdout, stderr };
  }
}

function contentOf(fd: number): string {
  const bytes = Buffer.alloc(fs.fstatSync(fd).size);
  fs.readSync(fd, bytes, 0, bytes.length, 0);
  return bytes.toString('utf8');
}

/** Only one line is under way at a time. @returns undefined when the other end has gone */
function readLine(fd: number): string | undefined {
  const chunks: Buffer[] = [];
  for (;;) {
    const chunk = Buffer.alloc(64 * 1024);
    const count = fs.readSync(fd, chunk);
    if (count === 0) return undefined;
    chunks.push(chunk.subarray(0, count));
    if (chunk[count - 1] === 0x0a) return Buffer.concat(chunks).toString('utf8');
  }
}

/** Descriptor of the answers, behind the standard ones. */
const ANSWERS = 3;

async function serve(): Promise<void> {
  for (let line = readLine(0); line !== undefined; line = readLine(0)) {
    const { directory, args } = JSON.parse(line) as Order;
    process.chdir(directory);
    fs.writeSync(ANSWERS, `${await main(args)}\n`);
  }
}

if (require.main === module) void serve().then(() => process.exit(0));

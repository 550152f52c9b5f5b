/**
 * Commands of imagefs, one after the other, in one process that is not the test's: starting one for each of hundreds would take most of
 * the time of these tests. Each runs through `main`, as bin/imagefs does. Synchronous: a FIFO there, another one back.
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
    const fifos = ['orders', 'answers'].map((name) => path.join(directory, name));
    execFileSync('mkfifo', fifos);
    const { O_RDWR, O_CREAT, O_APPEND } = fs.constants;
    this.output = ['stdout', 'stderr'].map((name) =>
      fs.openSync(path.join(directory, name), O_RDWR | O_CREAT | O_APPEND),
    );
    spawn(process.execPath, [__filename, ...fifos], { stdio: ['ignore', this.output[0], this.output[1]] }).unref();
    // Each waits for the other end.
    this.orders = fs.openSync(fifos[0], 'w');
    this.answers = fs.openSync(fifos[1], 'r');
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
  const bytes = Buffer.alloc(64 * 1024);
  for (let text = ''; ; ) {
    const count = fs.readSync(fd, bytes);
    if (count === 0) return undefined;
    text += bytes.toString('utf8', 0, count);
    if (text.endsWith('\n')) return text;
  }
}

async function serve(orders: number, answers: number): Promise<void> {
  for (let line = readLine(orders); line !== undefined; line = readLine(orders)) {
    const { directory, args } = JSON.parse(line) as Order;
    process.chdir(directory);
    fs.writeSync(answers, `${await main(args)}\n`);
  }
}

if (require.main === module) {
  const [, , orders, answers] = process.argv;
  void serve(fs.openSync(orders, 'r'), fs.openSync(answers, 'w')).then(() => process.exit(0));
}

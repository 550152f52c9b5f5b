/** What goes to standard output and standard error, and how qemu-img writes numbers and JSON. */
import { writeSync } from 'node:fs';
import { errnoNameOf, visible } from '../errors';

/** The reader of our output has gone (`imagefs map x | head -1`): nothing is wrong and nobody is left to tell. */
export class OutputClosed extends Error {
  constructor() {
    super('standard output was closed');
    this.name = 'OutputClosed';
  }
}

/** Characters that are collected before a write. */
const CHUNK = 32 * 1024;
/** How long to wait for a reader of a non-blocking pipe, in ms. */
const RETRY_MS = 5;

let pending = '';

/** Writes text to standard output, in large pieces. `flushOutput` sends the rest. */
export function print(text: string): void {
  pending += text;
  if (pending.length >= CHUNK) flushOutput();
}

export function printLine(line = ''): void {
  print(`${line}\n`);
}

export function flushOutput(): void {
  const text = pending;
  pending = '';
  if (text !== '') writeAll(1, text);
}

/** One line on standard error, behind all output so far. */
export function printError(line: string): void {
  flushOutput();
  try {
    writeAll(2, `${visible(line)}\n`);
  } catch {
    // Without standard error the exit code is all that is left to say.
  }
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text, 'utf8');
  let done = 0;
  while (done < bytes.length) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      const name = errnoNameOf(error);
      if (name === 'EPIPE') throw new OutputClosed();
      if (name !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
}

/** `0.62%`: two digits; exact halves go to the even digit, as C's printf does. */
export function percent(part: number, whole: number): string {
  const value = (part * 100) / whole;
  // Only odd multiples of 1/8 are halves of the second digit that a double holds exactly.
  const eighths = value * 8;
  if (!Number.isInteger(eighths) || eighths % 2 === 0) return `${value.toFixed(2)}%`;
  const down = Math.floor(value * 100);
  return `${((down % 2 === 0 ? down : down + 1) / 100).toFixed(2)}%`;
}

/** The JSON of qemu-img: four spaces, an empty list on two lines, nothing but ASCII, capitals in escapes. */
export function qemuJson(value: unknown): string {
  return JSON.stringify(value, null, 4)
    .replace(/^( *)(".*": |)\[\](,?)$/gm, '$1$2[\n$1]$3')
    .replace(/[\u007f-\uffff]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
    .replace(/\\(u[0-9a-f]{4}|.)/g, (all, what: string) =>
      what.length === 1 ? all : `\\u${what.slice(1).toUpperCase()}`,
    );
}

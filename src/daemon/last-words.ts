/**
 * Last words of a daemon: a file in memory that it holds open. `imagefs umount` opens it through /proc/PID/fd before it
 * unmounts and reads it after the process has gone, so an error of the final flush reaches the person who unmounts,
 * without any file on disk.
 */
import fs from 'node:fs';
import { memfdCreate } from '../system/memfd';

const NAME = 'imagefs-status';

/** How /proc/PID/fd shows it (the kernel adds ` (deleted)`). */
export const LAST_WORDS_LINK = `/memfd:${NAME}`;

/** The word that everything is on disk. Without it the daemon was ended by force, whatever else it said. */
const CLEAN = 'clean';

export class LastWords {
  private readonly fd: number;

  constructor() {
    this.fd = memfdCreate(NAME);
  }

  /** Adds one line about what went wrong. */
  say(message: string): void {
    fs.writeSync(this.fd, `${message}\n`);
  }

  /** Everything is flushed, closed and released. */
  sayClean(): void {
    this.say(CLEAN);
  }
}

/** Reads through a descriptor from openLastWords(), after the process has gone, and closes it. @returns what went wrong; empty when nothing did */
export function readLastWords(fd: number): string[] {
  try {
    const text = Buffer.alloc(fs.fstatSync(fd).size);
    fs.readSync(fd, text, 0, text.length, 0);
    const lines = text
      .toString('utf8')
      .split('\n')
      .filter((line) => line !== '');
    if (lines.length === 0) return ['the daemon was killed before it had written everything'];
    return lines.filter((line) => line !== CLEAN);
  } finally {
    fs.closeSync(fd);
  }
}

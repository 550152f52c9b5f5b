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

export class LastWords {
  private readonly fd: number;

  constructor() {
    this.fd = memfdCreate(NAME);
  }

  /** Adds one line. */
  say(message: string): void {
    fs.writeSync(this.fd, `${message}\n`);
  }
}

/** The lines said, through a descriptor from openLastWords(). Closes it. */
export function readLastWords(fd: number): string[] {
  try {
    const text = Buffer.alloc(fs.fstatSync(fd).size);
    fs.readSync(fd, text, 0, text.length, 0);
    return text
      .toString('utf8')
      .split('\n')
      .filter((line) => line !== '');
  } finally {
    fs.closeSync(fd);
  }
}

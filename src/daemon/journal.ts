/** Where a daemon's lines go: the terminal in the foreground, a log file when one was named, else nowhere. */
import fs from 'node:fs';
import { hostError } from '../errors';

export class Journal {
  private readonly fd: number | undefined;

  /** @param file appended to; created when it is missing */
  constructor(
    private readonly foreground: boolean,
    file: string | undefined,
  ) {
    try {
      this.fd = file === undefined ? undefined : fs.openSync(file, 'a', 0o600);
    } catch (error) {
      throw hostError(error, `Cannot open the log file "${file}"`, file === undefined ? {} : { path: file });
    }
  }

  /** Writes one line. Never throws: a full log disk must not harm the mount. */
  say(message: string): void {
    try {
      if (this.foreground) fs.writeSync(2, `imagefs: ${message}\n`);
      if (this.fd !== undefined) fs.writeSync(this.fd, `${new Date().toISOString()} [${process.pid}] ${message}\n`);
    } catch {
      // Nobody is left to hear of it.
    }
  }
}

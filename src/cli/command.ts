/** One subcommand of `imagefs`: a file in `commands/` and one line in `main.ts`. */
export interface Command {
  readonly name: string;
  /** One line for `imagefs --help`. */
  readonly summary: string;
  /** The whole text of `imagefs NAME --help`, with options, exit codes and one example. */
  readonly help: string;
  /** Exit code for wrong words (default 2). The commands of qemu-img answer 1, as it does. */
  readonly usageExit?: number;
  /**
   * @param args what follows the subcommand
   * @returns the exit code
   */
  run(args: string[]): number | Promise<number>;
}

/** Wrong words on the command line: `main` prints the message, points to --help and exits with the command's usage code. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'UsageError';
  }
}

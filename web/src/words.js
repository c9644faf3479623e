// What goes wrong, in words that help whoever reads them.

/** Why a camera or microphone is not there. */
export function mediaTrouble(error, what) {
  switch (error?.name) {
    case "NotAllowedError":
      return `The browser was told not to let this page use your ${what}. Click the lock beside the address, allow it, and try again.`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `No ${what} was found. Plug one in, or join without it.`;
    case "NotReadableError":
      return `Your ${what} is in use by another program. Close that one and try again.`;
    default:
      return isSecureContext
        ? `Your ${what} could not be started (${error?.message ?? error}).`
        : `Browsers give out cameras and microphones only on https:// or on localhost. Open this page over https.`;
  }
}

/** Why joining failed. */
export function joinTrouble(error) {
  const text = String(error?.message ?? error);
  if (error?.status === 401 || /401|token|unauthori[sz]ed/i.test(text)) {
    return `The server did not accept the token: ${text}. Ask for a new one.`;
  }
  if (error?.status === 429) return "Too many people are joining from your network at once. Try again in a few seconds.";
  if (/does not exist/.test(text)) return "There is no such room. Check its name.";
  if (/pc connection|peer ?connection|ICE/i.test(text)) {
    return "The server was found, but no way for media could be opened: your firewall lets neither UDP nor TCP 443 through to it.";
  }
  return `The server could not be reached (${text}). Check your connection and try again.`;
}

export function leftBecause(reason) {
  return {
    DUPLICATE_IDENTITY: "You joined from somewhere else, so this window left.",
    PARTICIPANT_REMOVED: "You were removed from the room.",
    ROOM_DELETED: "The room was closed.",
    SERVER_SHUTDOWN: "The server is restarting. Join again in a moment.",
    STATE_MISMATCH: "The connection was lost for too long. Join again.",
  }[reason];
}

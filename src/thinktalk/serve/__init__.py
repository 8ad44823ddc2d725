"""The server: OpenAI's chat, audio and Realtime dialects over the live engine. No torch here."""
